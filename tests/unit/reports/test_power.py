"""Power: the stated detectable difference is the one that seeds do detect."""

import re

import numpy as np
import pandas as pd

from rayexp.evaluation.statistics import ALPHA, detectable, p_of_mean
from rayexp.reports.power import detectable_gains
from tests.fixtures.simulated_study import simulated_results


def means(values):
    return pd.DataFrame({"seed": np.arange(len(values)), "gain": values})


def test_so_many_seeds_detect_what_they_are_said_to():
    rng = np.random.default_rng(0)
    spread = means(np.array([-1.0, 0.0, 1.0]) * 0.1)  # a standard deviation of 0.1
    gain = detectable(spread, "gain", seeds=5)
    p_values = [p_of_mean(means(rng.normal(gain, 0.1, 5)), "gain", 0.0) for _ in range(400)]
    assert 0.74 < np.mean(np.array(p_values) < ALPHA) < 0.86
    assert detectable(spread, "gain", seeds=12) < gain < detectable(spread, "gain")
    assert np.isnan(detectable(means([0.1]), "gain"))


def test_it_is_said_of_as_many_seeds_as_there_are_and_of_more():
    said = detectable_gains(simulated_results())
    found = re.fullmatch(
        r"at the spread of the seeds so far, 80% of studies would find a gain of (\S+) to (\S+) with 2 seeds, "
        r"of (\S+) to (\S+) with 12 seeds",
        said,
    )
    assert found
    two_low, two_high, more_low, more_high = map(float, found.groups())
    assert more_low < two_low <= two_high
    assert more_high < two_high


def test_nothing_is_said_of_one_seed():
    assert detectable_gains(simulated_results(seeds=(0,))) == ""
