"""The optimum for one prompt, and the paper's bound on it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from rayexp.evaluation import theory

masses = st.floats(1e-12, 1 - 1e-9)
betas = st.floats(0.02, 10)


@given(masses, betas)
def test_the_optimum_shifts_the_logit_by_one_over_beta(q, beta):
    s, tilted = math.exp(1 / beta), float(theory.tilted(np.array(q), beta))
    assert tilted == pytest.approx(s * q / (s * q + 1 - q), rel=1e-9)
    if tilted < 0.999:  # above this, 1 - P* loses digits
        shift = math.log(tilted / (1 - tilted)) - math.log(q / (1 - q))
        assert shift == pytest.approx(1 / beta, abs=1e-6)


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0])
def test_the_tilted_policy_is_the_maximiser(beta):
    """Search the maximum of E[R] - beta KL(pi||q) over the correct mass p on a grid."""
    p, q = np.linspace(1e-4, 1 - 1e-4, 20_000), 0.03
    best = p[np.argmax(p - beta * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)))]
    assert float(theory.tilted(np.array(q), beta)) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("beta", [0.1, 0.2, 1.0, 5.0])
def test_the_gain_peaks_where_and_as_high_as_it_says(beta):
    q = theory.peak(beta)[0] * np.linspace(0.5, 1.5, 2001)
    gains = theory.gain(q, beta)
    assert (q[gains.argmax()], gains.max()) == pytest.approx(theory.peak(beta), rel=1e-3)


@given(st.floats(0, 1), st.sampled_from([0.0, 0.001]) | betas)
def test_the_papers_bound_is_above_the_optimum(q, beta):
    q_N = np.array([q])
    assert theory.paper_bound(q_N, beta)[0] >= theory.tilted(q_N, beta)[0] - 1e-12
    assert theory.tilted(q_N, beta)[0] >= q - 1e-12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("beta", [0.0, 0.001, 1.0])
def test_extreme_masses_are_finite_and_silent(beta):
    q = np.array([0.0, 1e-300, 0.5, 1.0])
    tilted, bound, gain = theory.tilted(q, beta), theory.paper_bound(q, beta), theory.gain(q, beta)
    for values in (tilted, bound, gain):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert (values <= 1).all()
    assert (tilted[0], tilted[-1], gain[0], gain[-1]) == (0, 1, 0, 0)


@pytest.mark.parametrize("beta", [0.0, 0.001])
def test_the_peak_without_a_kl_is_at_zero(beta):
    assert theory.peak(beta) == pytest.approx((0, 1), abs=1e-12)
