"""The coverage profile: how many prompts a model would hardly ever get right, for every number of tries.

A prompt counts as covered at N where the model is right at least once in N completions on average: Q >= 1/N. Whether
the best of N samples can be right, and whether GRPO with N rollouts of a prompt sees a reward, depends on that and not
on the mean of Q (arXiv 2510.15020).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rayexp.reports.arms import Arm, arms, counted
from rayexp.reports.bands import band_panels
from rayexp.reports.drawing import PRETRAINED, ReportFigure, on_page

#: Numbers of tries, two a decade.
TRIES = 10 ** np.arange(0, 8.01, 0.5)
#: What the caption says of lost and gained prompts is about so many tries.
SAID = 1000.0


@on_page("Prompts out of reach", place=8)
def coverage(results: pd.DataFrame) -> ReportFigure | None:
    """Draw the share of the prompts of the target cells with Q < 1/N against N, after pretraining, SFT and GRPO; a
    panel for each arm and OOD ratio. Exact masses only: that of a gold trace says nothing about how rarely an answer is
    right."""
    if not results["exact"].all():
        return None
    data = pd.DataFrame([row for arm in arms(results) for row in _rows(arm, results)])
    if data.empty:
        return None
    figure, axes = band_panels(data, arms(results), "tries", "uncovered")
    for axis in axes[:, 0]:
        axis.set_ylabel("share with Q < 1/N")
    figure.supxlabel("N, completions drawn", fontsize="medium")
    at = data[(data["tries"] == SAID) & data["kl_beta"].notna()]
    return ReportFigure(
        caption="Share of the test prompts that a model gets right less than once in N completions, from the exact Q. "
        "Where a curve after GRPO lies above the one before it, GRPO moved prompts out of reach; where it lies below, "
        f"into reach. At N = {SAID:,.0f} GRPO moved at most {100 * at['lost'].max():.2g} % of the prompts of a panel "
        f"out of reach and at most {100 * at['gained'].max():.2g} % into it, and kept between "
        f"{100 * at['kept'].min():.2g} and {100 * at['kept'].max():.2g} % within it. Lines are means over seeds, bands "
        "reach from the lowest to the highest seed.",
        alt=f"Share of prompts with a correct mass below 1/N against N, before GRPO and after, for "
        f"{counted(pd.Series(data['ood_ratio'].nunique()), 'OOD ratio')}. At N = {SAID:,.0f} it lies between "
        f"{at['uncovered'].min():.2g} and {at['uncovered'].max():.2g} after GRPO.",
        figure=figure,
        data=data,
    )


def _rows(arm: Arm, results: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a row for each OOD ratio, stage (with its beta if it is GRPO) and number of tries. lost, kept, gained:
    share of prompts that the stage moved out of reach, left within it, and moved into it; None of the first stage."""
    target = arm.cells(arm.target)
    for ratio, at in target.groupby("ood_ratio"):
        about = {**arm.about, "role": arm.target, "ood_ratio": ratio}
        inits = results[results["stage_id"].isin(at["init_id"]) & (results["role"] == arm.target)]
        tuned = inits[(inits["kind"] == "sft") & inits["init_q"].notna()]
        pretrained = tuned.assign(q=tuned["init_q"], init_q=np.nan)
        measured = [(PRETRAINED.key, None, pretrained), ("init", None, inits)]
        measured += [("grpo", beta, rows) for beta, rows in at.groupby("kl_beta")]
        for stage, beta, rows in measured:
            counts = {"n_seeds": rows["seed"].nunique(), "n": len(rows)}
            for tries in TRIES.tolist() if len(rows) else ():
                found = {**about, "stage": stage, "kl_beta": beta, **counts, "tries": tries}
                yield found | _out_of_reach(rows, 1 / tries)


def _out_of_reach(rows: pd.DataFrame, least: float) -> dict[str, float | None]:
    """Return the share of prompts with a mass below ``least``, over seeds, and what became of those before."""
    was, is_now = rows["init_q"] < least, rows["q"] < least
    seeds = is_now.groupby(rows["seed"]).mean()
    found: dict[str, float | None] = {"uncovered": seeds.mean(), "lowest": seeds.min(), "highest": seeds.max()}
    if rows["init_q"].isna().all():
        return found | dict.fromkeys(("lost", "kept", "gained"))
    return found | {
        "lost": (is_now & ~was).mean(),
        "kept": (~is_now & ~was).mean(),
        "gained": (was & ~is_now).mean(),
    }
