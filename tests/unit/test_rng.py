"""Counter-based random numbers: uniform, unrelated between streams, and the same in any slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rayexp import rng


@given(count=st.integers(1, 12), start=st.integers(0, 50), width=st.integers(0, 50), inside=st.integers(0, 50))
def test_epochs_visit_everything_once_and_slices_agree(count, start, width, inside):
    endless = rng.epochs(7, count, 0, 150)
    for epoch in range(150 // count):
        assert sorted(endless[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert (rng.epochs(7, count, start, start + width) == endless[start : start + width]).all()


def test_epochs_are_shuffled_afresh():
    first, second = rng.epochs(7, 50, 0, 100).reshape(2, 50)
    assert (first != second).any()
    assert (first != np.arange(50)).any()


@pytest.mark.parametrize("stream", [0, rng.stream_key("a"), rng.stream_key(0, "pretrain")])
@pytest.mark.parametrize("slot", [0, 1])
def test_draws_are_uniform_and_serially_uncorrelated(stream, slot):
    u = rng.uniform(stream, np.arange(20_000), slot)
    assert u.min() >= 0
    assert u.max() < 1
    assert chisquare(np.histogram(u, bins=64, range=(0, 1))[0]).pvalue > 1e-3
    low_bits = np.bincount((rng.random_bits(stream, np.arange(20_000), slot) % np.uint64(64)).astype(int), minlength=64)
    assert chisquare(low_bits).pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


def test_keys_of_different_parts_differ():
    parts = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), (1,), ("1",), (1, 0), (10,)]
    assert len({rng.stream_key(*part) for part in parts}) == len(parts)
