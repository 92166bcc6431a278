"""pass@k and intervals, against the definition and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom

from rayexp.evaluation.metrics import bootstrap_each, cluster_bootstrap, pass_at_k, pass_at_k_sampled, wilson


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_sampled_pass_at_k_is_unbiased(sampled, k, q):
    """Take the expectation over the binomial number of correct completions. It is the exact value."""
    assume(k <= sampled)
    correct = np.arange(sampled + 1)
    estimate = (binom.pmf(correct, sampled, q) * pass_at_k_sampled(sampled, correct, k)).sum()
    assert estimate == pytest.approx(float(pass_at_k(np.array(q), k)), abs=1e-9)
    assert float(pass_at_k(np.array(q), k)) == pytest.approx(1 - (1 - q) ** k, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_sampled_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=f"k={k} should be from 1 to "):
        pass_at_k_sampled(4, np.array([1]), k)


@given(st.integers(1, 200), st.data())
def test_wilson_interval(trials, data):
    successes = data.draw(st.integers(0, trials))
    z, p = 1.959964, successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert interval.mean == p
    assert interval.prompts == trials


def test_bootstrap_intervals_cover_the_truth_and_see_seeds():
    """Draw 200 studies of 10 seeds with 20 prompts. Most variance is between seeds, which pooled prompts would hide."""
    rng = np.random.default_rng(3)
    covered = blind = 0
    for _ in range(200):
        rates = rng.beta(2, 2, size=10)
        clusters = [rng.binomial(1, rate, size=20) for rate in rates]
        interval, pooled = cluster_bootstrap(clusters, 300), cluster_bootstrap([np.concatenate(clusters)], 300)
        covered += interval.low <= 0.5 <= interval.high
        blind += pooled.low <= 0.5 <= pooled.high
    assert 180 <= covered <= 200
    assert blind < 160


def test_bootstrap_is_deterministic_and_exact_where_nothing_varies():
    clusters = [np.array([0.0, 1.0, 1.0]), np.array([1.0])]
    interval = cluster_bootstrap(clusters)
    assert interval == cluster_bootstrap(clusters)
    assert (interval.mean, interval.seeds, interval.prompts) == (0.75, 2, 4)
    constant = cluster_bootstrap([np.full(5, 0.25)] * 3)
    assert (constant.low, constant.mean, constant.high) == (0.25, 0.25, 0.25)
    for bad in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one cluster"):
            cluster_bootstrap(bad)


def test_the_intervals_of_many_clusters_are_those_of_each_by_itself() -> None:
    rng = np.random.default_rng(3)
    clusters = [rng.random(size) for size in (1, 7, 20, 7, 20, 20)]
    expected = [cluster_bootstrap([cluster]) for cluster in clusters]
    assert bootstrap_each(clusters) == pytest.approx(np.array([(each.low, each.high) for each in expected]), abs=1e-12)
    assert bootstrap_each([]).shape == (0, 2)


@pytest.mark.filterwarnings("error")
def test_chances_at_extreme_masses_are_finite_and_silent():
    np.testing.assert_allclose(pass_at_k(np.array([0.0, 1e-12, 0.5, 1.0]), 8), [0, 8e-12, 1 - 0.5**8, 1], rtol=1e-9)
