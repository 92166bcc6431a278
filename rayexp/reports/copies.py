"""Test items of which pretraining had a half (``tasks.copies``): their pairs, and results without the copied ones."""

import pandas as pd

from rayexp.stages import Pretrain, Stage
from rayexp.tasks.copies import is_copied

#: Columns that two items of a pair agree in besides all that is about their stage.
PAIR = ["stage_id", "cell", "pair"]


def with_copied(frame: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """Return the rows of one stage with ``copied``: true in the copied half, false in the control half, else null."""
    root, copied = stage.root, pd.Series(pd.NA, frame.index, dtype="boolean")
    if isinstance(root, Pretrain) and root.copied_items:
        known = frame[(frame["role"] == "ood") & (frame["prompt_index"] < root.copied_items)]
        for cell, rows in known.groupby("cell"):
            copied[rows.index] = is_copied(root.seed, str(cell), rows["prompt_index"].to_numpy())
    return frame.assign(copied=copied)


def held_out(results: pd.DataFrame) -> pd.DataFrame:
    """Return results without the copied items. Claims, objections and figures use only these."""
    return results[~results["copied"].fillna(False).astype(bool)]


def pairs(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each copied item, with ``q`` of its control beside its own: control_q, and copied_q - control_q
    as ``worth``."""
    known = results[results["copied"].notna()]
    known = known.assign(pair=known["prompt_index"] // 2, copied=known["copied"].astype(bool))
    controls = known[~known["copied"]][[*PAIR, "q"]].rename(columns={"q": "control_q"})
    found = known[known["copied"]].merge(controls, on=PAIR, validate="one_to_one")
    return found.assign(worth=found["q"] - found["control_q"])
