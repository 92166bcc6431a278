"""The comparisons of a report: the arms of a study, each with the cells that it is judged on.

An arm is GRPO on the prompts of one role, in one condition: rows of chains that differ in a setting other than OOD
ratio, beta and seed are never taken together. Its rows are the measured GRPO prompts of
``table.results`` whose init was measured too, so that every row holds a pair: ``init_q`` before GRPO and ``q`` after.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pandas as pd

ROLE_NAMES = {"id": "ID", "ood": "OOD", "probe": "probe"}
#: Role of the cells that the question is about, by the role of GRPO's prompts.
TARGET_OF = {"id": "ood", "ood": "ood", "probe": "probe"}


@dataclass(frozen=True)
class Arm:
    """GRPO on prompts of a role (id, ood, probe) in one condition.

    rows: those of ``table.results``, and ``gain``, which is q - init_q.
    """

    condition: str
    prompt_role: str
    rows: pd.DataFrame

    @property
    def layers(self) -> int:
        return int(self.rows["layers"].iloc[0])

    @property
    def about(self) -> dict[str, Any]:
        """Return the columns that identify the rows of this arm."""
        return {"condition": self.condition, "layers": self.layers, "prompt_role": self.prompt_role}

    def of(self, data: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a table that are about this arm."""
        return data[(data["condition"] == self.condition) & (data["prompt_role"] == self.prompt_role)]

    @property
    def target(self) -> str:
        return TARGET_OF[self.prompt_role]

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the roles of the cells to show: the target role, and the role that GRPO trained on."""
        return tuple(dict.fromkeys((self.target, self.prompt_role)))

    @property
    def short_name(self) -> str:
        """Return a title, e.g. ``OOD prompts``, with the condition if a study has several."""
        return f"{ROLE_NAMES[self.prompt_role]} prompts{title_suffix(self.condition)}"

    @property
    def name(self) -> str:
        return f"GRPO on {self.short_name}"

    def cells(self, role: str) -> pd.DataFrame:
        return self.rows[self.rows["role"] == role]


def arms(results: pd.DataFrame) -> list[Arm]:
    """Return the arms with at least one measured pair, by condition and then by role."""
    pairs = results[results["kl_beta"].notna() & results["init_q"].notna()]
    pairs = pairs.assign(gain=pairs["q"] - pairs["init_q"], kl_beta=pairs["kl_beta"].astype(float))
    return [
        Arm(condition, role, rows)
        for condition in pairs["condition"].unique().tolist()
        for role in ROLE_NAMES
        if len(rows := pairs[(pairs["condition"] == condition) & (pairs["prompt_role"] == role)])
    ]


def before(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a prompt of each init, because GRPO stages with the same init share its measurements."""
    return rows.drop_duplicates(["init_id", "cell", "prompt_index"])


def percent(ratio: float) -> str:
    """Return an OOD ratio in percent, exact and without the sign: ``0.3`` for 0.003."""
    return f"{Decimal(repr(float(ratio))).scaleb(2).normalize() + 0:f}"


def mass_name(results: pd.DataFrame) -> str:
    """Return the name of q in this study. If several completions are right, q is the mass of only one of them."""
    return "correct mass Q" if results["exact"].all() else "gold mass (≤ Q)"


def counted(counts: pd.Series, noun: str) -> str:
    """Return a number, or its range over the points of a figure: ``3 seeds``, ``1 seed``, ``1 to 3 seeds``."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low if low == high else f'{low} to {high}'} {noun}{'' if high == 1 else 's'}"


def title_suffix(condition: str) -> str:
    """Return a condition as the end of a title."""
    return f", {condition}" if condition else ""
