"""Certainty of a number: intervals and p-values over seeds, and Holm's procedure over many p-values.

Seeds are the unit of variation between runs, and there are few of them. With three seeds a bootstrap interval is too
narrow, because means of resamples cannot leave the range of the seeds. Verdicts therefore use the wider of two
intervals: the bootstrap over seeds and prompts, and Student's t over the means of the seeds. p-values come from
Student's t. With one seed neither interval covers another run, and there is no p-value.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportions_ztest

from rayexp.evaluation.metrics import Interval, cluster_bootstrap, wilson

#: Level of every interval and verdict, two-sided.
ALPHA = 0.05
#: Power: share of studies that should find a difference which exists.
POWER = 0.8


Limits = tuple[float, float]
UNLIMITED: Limits = (-np.inf, np.inf)


def possible_change(before: pd.Series) -> Limits:
    """Return the limits of the change of a mean mass: it can fall by its own size, and rise by what it lacks to 1."""
    mean = float(before.mean())
    return -mean, 1 - mean


def interval(rows: pd.DataFrame, column: str, possible: Limits = UNLIMITED) -> Interval:
    """Return the mean of a column over prompts and seeds with its 95 % bootstrap interval. Clusters are seeds.

    possible: smallest and largest possible mean, to which the interval is cut.
    """
    clusters = [cluster.to_numpy(dtype=float) for _, cluster in rows.groupby("seed")[column]]
    return cluster_bootstrap(clusters).within(possible)


def summarised(rows: pd.DataFrame, **columns: str) -> dict[str, Any]:
    """Return mean and interval of each column under a new name, with the numbers of seeds and of rows (n)."""
    out: dict[str, Any] = {}
    for name, column in columns.items():
        found = interval(rows, column, possible_change(rows["init_q"]) if column == "gain" else UNLIMITED)
        out |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        out |= {"n_seeds": found.seeds, "n": found.prompts}
    return out


def conservative_interval(rows: pd.DataFrame, column: str, possible: Limits = UNLIMITED) -> Interval:
    """Return the mean with the wider of two 95 % intervals: bootstrap over seeds and prompts, Student's t over means of
    seeds.

    possible: as for ``interval``. Student's t ignores these limits, and with few seeds it may cover the whole range.
    """
    boot = interval(rows, column, possible)
    if boot.seeds == 1:
        return boot
    means = rows.groupby("seed")[column].mean()
    half = stats.t.ppf(1 - ALPHA / 2, boot.seeds - 1) * stats.sem(means)
    low, high = min(boot.low, means.mean() - half), max(boot.high, means.mean() + half)
    return replace(boot, low=float(low), high=float(high)).within(possible)


def proportion(rows: pd.DataFrame, column: str) -> Interval:
    """Return the share of rows in which a boolean column is true, with the wider of Wilson's interval and the one over
    seeds."""
    over_seeds = conservative_interval(rows, column, (0.0, 1.0))
    over_rows = wilson(int(rows[column].sum()), len(rows))
    return replace(over_seeds, low=min(over_seeds.low, over_rows.low), high=max(over_seeds.high, over_rows.high))


def p_of_mean(rows: pd.DataFrame, column: str, limit: float) -> float | None:
    """Return the two-sided p-value of the hypothesis that the mean is ``limit``, by Student's t over means of seeds;
    None with one seed."""
    means = rows.groupby("seed")[column].mean().astype(float)
    if len(means) == 1:
        return None
    if np.ptp(means) == 0:  # a t of infinity, or 0 / 0
        return float(means.iloc[0] == limit)
    tested: Any = stats.ttest_1samp(means, limit)
    return float(tested.pvalue)


def p_within(rows: pd.DataFrame, column: str, limits: Limits) -> float | None:
    """Return the p-value of the hypothesis that the mean is outside the limits, by two one-sided t-tests over the means
    of seeds (Schuirmann, 1987); None with one seed."""
    means = rows.groupby("seed")[column].mean().astype(float)
    if len(means) == 1:
        return None
    if np.ptp(means) == 0:
        return float(not limits[0] < means.iloc[0] < limits[1])
    sides: Any = [
        stats.ttest_1samp(means, limit, alternative=side)
        for limit, side in zip(limits, ("greater", "less"), strict=True)
    ]
    return float(max(side.pvalue for side in sides))


def detectable(rows: pd.DataFrame, column: str, seeds: int = 0) -> float:
    """Return the smallest distance of a mean from a limit that a t-test over seeds finds in ``POWER`` of all studies.

    It assumes that the means of seeds spread as in these rows. NaN with one seed. seeds: number of seeds of the study;
    by default that of the rows.
    """
    means = rows.groupby("seed")[column].mean().astype(float)
    if len(means) == 1:
        return float("nan")
    effect: Any = TTestPower().solve_power(nobs=seeds or len(means), alpha=ALPHA, power=POWER)
    return float(effect * means.std())


def p_of_proportion(rows: pd.DataFrame, column: str, limit: float) -> float | None:
    """Return the larger of two p-values: over seeds, and by the score test over rows, which matches Wilson's
    interval."""
    over_seeds = p_of_mean(rows, column, limit)
    if over_seeds is None:
        return None
    variance: Any = limit  # under the hypothesis, as in Wilson's interval
    return max(over_seeds, float(proportions_ztest(rows[column].sum(), len(rows), limit, prop_var=variance)[1]))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted by Holm's procedure. None stays None and does not count as a test."""
    known = [i for i, p in enumerate(p_values) if p is not None and not np.isnan(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    if known:
        corrected: Any = multipletests([p_values[i] for i in known], alpha=ALPHA, method="holm")[1]
        for i, p in zip(known, corrected, strict=True):
            adjusted[i] = float(p)
    return adjusted
