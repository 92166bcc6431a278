"""Power: the smallest gain that a number of seeds can detect, at the spread of the seeds so far."""

import pandas as pd

from rayexp.evaluation.statistics import POWER, detectable
from rayexp.reports.arms import arms

#: A study with so few seeds is asked about more; one with more about as many again.
MORE = 12


def detectable_gains(results: pd.DataFrame) -> str:
    """Say which gains of the target cells the seeds can detect, over the arms, betas and OOD ratios of
    ``table.results``; nothing if there are no two seeds."""
    spread: dict[int, list[float]] = {}
    for arm in arms(results):
        for _, rows in arm.cells(arm.target).groupby(["kl_beta", "ood_ratio"]):
            seeds = rows["seed"].nunique()
            for asked in (seeds, max(MORE, 2 * seeds)) if seeds > 1 else ():
                spread.setdefault(asked, []).append(detectable(rows, "gain", asked))
    said = [f"of {min(of):.2g} to {max(of):.2g} with {seeds} seeds" for seeds, of in sorted(spread.items())]
    if not said:
        return ""
    return f"at the spread of the seeds so far, {POWER:.0%} of studies would find a gain {', '.join(said)}"
