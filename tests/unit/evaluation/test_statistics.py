"""Intervals and p-values over seeds: the wider interval, the textbook p-values, Holm's procedure by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rayexp.evaluation.metrics import wilson
from rayexp.evaluation.statistics import (
    conservative_interval,
    holm,
    interval,
    p_of_mean,
    p_of_proportion,
    possible_change,
    proportion,
)


@pytest.fixture
def rows() -> pd.DataFrame:
    """Return rows of three seeds with 20 prompts each. The seeds differ more than the prompts."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({"seed": np.repeat([0, 1, 2], 20), "x": rng.normal(np.repeat([0.1, 0.2, 0.4], 20), 0.01)})


def test_a_verdict_takes_the_wider_interval(rows: pd.DataFrame) -> None:
    found, means = conservative_interval(rows, "x"), rows.groupby("seed")["x"].mean()
    low, high = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.low < interval(rows, "x").low < interval(rows, "x").high < found.high
    one = rows[rows["seed"] == 0]
    assert conservative_interval(one, "x") == interval(one, "x")


def test_an_interval_stays_within_what_is_possible_and_says_nothing_where_it_covers_nearly_all_of_it() -> None:
    """Take a gain from a mean Q of 0.25, between -0.25 and 0.75. Student's t over three seeds gives -1.1 to 1.8."""
    after = np.repeat([0.2, 0.4, 1.0], 20)
    rows = pd.DataFrame({"seed": np.repeat([0, 1, 2], 20), "init_q": 0.25}).assign(gain=after - 0.25)
    wide = conservative_interval(rows, "gain")
    assert wide.low < -0.25
    assert wide.high > 0.75
    found = conservative_interval(rows, "gain", possible_change(rows["init_q"]))
    assert (found.low, found.high) == (-0.25, 0.75)
    assert str(found) == "0.283 (uncertain with 3 seeds)"
    assert f"{found:+.2g}" == "+0.28 (uncertain with 3 seeds)"
    most = replace(found, low=-0.03)  # 0.78 of the possible range of 1: from a small loss to the largest gain
    assert most.undecided
    assert not replace(found, low=0.01).undecided
    narrow = rows[rows["seed"] > 0].assign(gain=lambda r: r["gain"] / 10)
    told = conservative_interval(narrow, "gain", possible_change(rows["init_q"]))
    assert not told.undecided
    assert str(told) == f"{told.mean:.3g} [{told.low:.3g}, {told.high:.3g}]"


def test_the_p_value_of_a_mean_is_students_over_seeds(rows: pd.DataFrame) -> None:
    means = rows.groupby("seed")["x"].mean().to_numpy()
    t = (means.mean() - 0.05) / (means.std(ddof=1) / np.sqrt(3))
    assert p_of_mean(rows, "x", 0.05) == pytest.approx(2 * stats.t.sf(abs(t), 2))
    # The p-value is 5 % at the end of the interval over seeds.
    low, _ = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
    assert p_of_mean(rows, "x", low) == pytest.approx(0.05)
    assert p_of_mean(rows[rows["seed"] == 0], "x", 0.05) is None


@pytest.mark.filterwarnings("error")
def test_seeds_that_agree_exactly_are_certain(rows: pd.DataFrame) -> None:
    same = rows.assign(x=0.25)
    assert (p_of_mean(same, "x", 0.25), p_of_mean(same, "x", 0.2)) == (1.0, 0.0)


def test_a_proportion_is_as_sure_as_the_less_sure_of_seeds_and_rows(rows: pd.DataFrame) -> None:
    alike = rows.assign(x=np.tile(np.arange(20) < 4, 3))  # 20 % of every seed: the seeds seem certain
    assert p_of_mean(alike, "x", 0.05) == 0.0
    z = (0.2 - 0.05) / np.sqrt(0.05 * 0.95 / 60)
    assert p_of_proportion(alike, "x", 0.05) == pytest.approx(2 * stats.norm.sf(z))
    found, alone = proportion(alike, "x"), conservative_interval(alike, "x", (0.0, 1.0))
    assert (found.low, found.high) == (min(alone.low, wilson(12, 60).low), max(alone.high, wilson(12, 60).high))
    # The p-value over rows is 5 % at the end of Wilson's interval.
    assert p_of_proportion(alike, "x", wilson(12, 60).low) == pytest.approx(0.05)
    apart = rows.assign(x=np.repeat([True, False, False], 20))
    assert p_of_proportion(apart, "x", 0.05) == p_of_mean(apart, "x", 0.05)
    assert p_of_proportion(alike[alike["seed"] == 0], "x", 0.05) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03, float("nan")]) == pytest.approx([0.03, None, 0.06, 0.06, None])
    assert holm([None]) == [None]
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]
