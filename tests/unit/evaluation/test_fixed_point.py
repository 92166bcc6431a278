"""The fixed point of GRPO as it is run: against groups counted one by one, and against GRPO on a table."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from rayexp.evaluation import theory
from rayexp.evaluation.fixed_point import COVERED, beyond_theory, effect, fixed_points, stable_points, stationary_mass
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.stages import GRPO
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain
from tests.fixtures.tabular_grpo import converged_mass
from tests.fixtures.tiny_policy import settings

# The effect of a group


@pytest.mark.parametrize("group_size", [2, 3, 5])
@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_the_effect_of_group_std_is_a_sum_over_all_groups(group_size, p):
    total = 0.0
    for group in itertools.product((0, 1), repeat=group_size):
        hits = sum(group)
        total += p**hits * (1 - p) ** (group_size - hits) * math.sqrt(hits * (group_size - hits))
    assert effect(np.array(p), "group_std", group_size) == pytest.approx(total / (group_size * p * (1 - p)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("group_size", [2, 8, 64, 1024])
def test_the_effect_has_its_limits_at_no_and_at_full_mass(group_size):
    ends = effect(np.array([0.0, 1e-12, 1 - 1e-12, 1.0]), "group_std", group_size)
    np.testing.assert_allclose(ends, math.sqrt(group_size - 1), rtol=1e-6)


def test_the_effects_that_are_known_by_heart():
    p = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(effect(p, "group_std", 2), 1)
    np.testing.assert_allclose(effect(p, "mean_only", 8), 7 / 8)
    np.testing.assert_allclose(effect(p, "leave_one_out", 8), 1)
    np.testing.assert_allclose(effect(np.array(0.5), "group_std", 8), 1.8557, atol=1e-4)
    np.testing.assert_allclose(effect(p, "group_std", 1024), 1 / np.sqrt(p * (1 - p)), rtol=0.02)


@pytest.mark.parametrize("group_size", [3, 8, 64, 1024])
def test_the_effect_falls_up_to_one_half_and_is_symmetric(group_size):
    """Show that one bracket below 1/2 is enough, because c falls with P there."""
    p = expit(np.linspace(-20, 0, 400))
    falling = effect(p, "group_std", group_size)
    assert (np.diff(falling) < 1e-12).all()
    np.testing.assert_allclose(effect(1 - p, "group_std", group_size), falling, rtol=1e-6)


# The fixed points


@pytest.mark.parametrize(
    ("q_t", "beta", "centred", "divided"),
    [(0.5, 1.0, 0.154, 0.428), (0.5, 0.5, 0.386, 0.975), (0.3, 0.5, 0.077, 0.904), (0.3, 0.3, 0.428, 0.999)],
)
def test_four_tokens_at_known_numbers(q_t, beta, centred, divided):
    """Compare with stochastic simulations of 3,000 steps, which gave the same values up to 0.004."""
    log_q_NT = np.log(np.full((1, 4), q_t))
    for advantage, p in (("mean_only", centred), ("group_std", divided)):
        found = stable_points(log_q_NT, beta, advantage, 8)
        assert (found.lowest_N[0], found.highest_N[0]) == pytest.approx((p, p), abs=6e-4)
    assert stable_points(np.log([[0.03]]), 1.0, "group_std", 8).lowest_N[0] == pytest.approx(0.2021, abs=1e-4)


masses = st.lists(st.floats(1e-5, 1 - 1e-5), min_size=3, max_size=3)
betas = st.floats(0.1, 3)


@given(st.lists(masses, min_size=1, max_size=4), st.floats(0.1, 3), st.sampled_from(COVERED), st.integers(2, 64))
def test_a_fixed_point_reproduces_itself(q_NT, beta, advantage, group_size):
    log_q_NT = np.log(q_NT)
    found = stable_points(log_q_NT, beta, advantage, group_size)
    for p_N in (found.lowest_N, found.highest_N):
        again_N1 = stationary_mass(log_q_NT, effect(p_N[:, None], advantage, group_size) / beta)
        np.testing.assert_allclose(again_N1[:, 0], p_N, rtol=1e-6)
    assert (np.exp(log_q_NT.sum(axis=1)) <= found.lowest_N + 1e-12).all()
    assert (found.lowest_N <= found.highest_N).all()


@given(masses, betas)
def test_the_stationary_policy_solves_the_equation_of_each_token(q_T, shift):
    """Check the equation from the last token backwards, with the product of the tokens after each."""
    after, pi_T = 1.0, []
    for q in reversed(q_T):
        pi_T.append(float(expit(logit(q) + shift * after)))
        after *= pi_T[-1]
    assert stationary_mass(np.log([q_T]), np.array([[shift]]))[0, 0] == pytest.approx(after, rel=1e-9)


def test_what_is_behind_the_end_of_a_shorter_completion_counts_for_nothing():
    short, padded = np.log([[0.2, 0.4]]), np.log([[0.2, 0.4, 1.0, 1.0]])
    for advantage in COVERED:
        one, other = (stable_points(log_q_NT, 0.5, advantage, 8) for log_q_NT in (short, padded))
        assert one.lowest_N[0] == pytest.approx(other.lowest_N[0], abs=1e-12)


def test_many_prompts_are_solved_as_each_alone(monkeypatch):
    log_q_NT = np.log(np.random.default_rng(0).uniform(1e-3, 1, (30, 2)))
    together = stable_points(log_q_NT, 0.6, "group_std", 64)
    assert (together.lowest_N < together.highest_N - 0.1).any()
    monkeypatch.setattr("rayexp.evaluation.fixed_point.AT_ONCE", 1_000)
    apart = stable_points(log_q_NT, 0.6, "group_std", 64)
    np.testing.assert_allclose(apart.lowest_N, together.lowest_N, rtol=1e-9)
    np.testing.assert_allclose(apart.highest_N, together.highest_N, rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_extreme_masses_stay_where_they_are():
    nothing, everything = np.full((2, 4), -400.0), np.zeros((2, 4))
    for advantage in COVERED:
        found = stable_points(nothing, 0.5, advantage, 8)
        assert (found.lowest_N == 0).all()
        assert (found.highest_N == 0).all()
        np.testing.assert_allclose(stable_points(everything, 0.5, advantage, 8).lowest_N, 1, rtol=1e-12)
        assert len(stable_points(everything[:0], 0.5, advantage, 8).lowest_N) == 0


# GRPO on a table

#: advantage, place of the KL, group size, beta, masses of the right tokens under the reference
CELLS = [
    ("mean_only", "loss", 8, 1.0, (0.5,) * 4),
    ("mean_only", "loss", 8, 0.5, (0.3,) * 4),
    ("mean_only", "loss", 2, 0.3, (0.3, 0.9, 0.2)),
    ("mean_only", "loss", 32, 0.3, (0.1, 0.5)),
    ("group_std", "loss", 8, 1.0, (0.5,) * 4),
    ("group_std", "loss", 8, 0.5, (0.3,) * 4),
    ("group_std", "loss", 2, 0.5, (0.6, 0.1, 0.4, 0.8)),
    ("group_std", "loss", 32, 1.0, (0.1, 0.3)),
    ("group_std", "loss", 64, 1.0, (0.2,)),
    ("group_std", "loss", 8, 1.0, (0.03,)),
    ("leave_one_out", "loss", 2, 0.3, (0.3, 0.9, 0.2)),
    ("leave_one_out", "loss", 8, 0.5, (0.3,) * 4),
    ("mean_only", "reward", 8, 0.5, (0.5,) * 4),
    ("mean_only", "reward", 2, 0.3, (0.3, 0.9, 0.2)),
    ("leave_one_out", "reward", 8, 0.3, (0.3,) * 4),
]


def predicted(advantage, kl_in, group_size, beta, q_T):
    log_q_NT = np.log([q_T])
    if kl_in == "loss":
        return stable_points(log_q_NT, beta, advantage, group_size).lowest_N[0]
    return theory.tilted(np.exp(log_q_NT.sum(axis=1)), beta)[0]


@pytest.mark.parametrize("reduction", ["token_sum", "sequence_mean"])
@pytest.mark.parametrize(("advantage", "kl_in", "group_size", "beta", "q_T"), CELLS)
def test_grpo_on_a_table_converges_where_the_theory_says(advantage, kl_in, group_size, beta, q_T, reduction):
    run = settings(kl_beta=beta, kl_in=kl_in, advantage=advantage, loss_reduction=reduction)
    found = converged_mass(q_T, group_size, run)
    assert found == pytest.approx(predicted(advantage, kl_in, group_size, beta, q_T), abs=1e-3)


@pytest.mark.parametrize(("kl_in", "estimator"), [("loss", "k2"), ("reward", "k1")])
def test_estimators_of_the_same_gradient_have_the_same_fixed_point(kl_in, estimator):
    q_T = (0.3, 0.9, 0.2)
    run = settings(kl_beta=0.5, kl_in=kl_in, kl_estimator=estimator)
    assert converged_mass(q_T, 4, run) == pytest.approx(predicted("mean_only", kl_in, 4, 0.5, q_T), abs=1e-3)


def test_another_gradient_does_not():
    q_T, run = (0.3, 0.4), settings(kl_beta=0.5, kl_estimator="k3")
    assert abs(converged_mass(q_T, 4, run) - predicted("mean_only", "loss", 4, 0.5, q_T)) > 0.02


def test_the_start_decides_where_two_points_are_stable():
    """Use groups of 64 at Q = 0.003. P converges from the reference to 0.24, and from 0.99 to 1."""
    q_T, run = [0.003], settings(kl_beta=0.5, advantage="group_std")
    found = stable_points(np.log([q_T]), 0.5, "group_std", 64)
    assert (found.lowest_N[0], found.highest_N[0]) == pytest.approx((0.24, 1.0), abs=0.005)
    assert converged_mass(q_T, 64, run) == pytest.approx(found.lowest_N[0], abs=1e-3)
    assert converged_mass(q_T, 64, run, start_T=[0.99]) == pytest.approx(found.highest_N[0], abs=1e-3)


# The scope of the theory


def grpo(task=None, **changes) -> GRPO:
    stage = tiny_chain(task or StringTask(axis="composition")).grpo
    return stage.model_copy(update={"kl_beta": 0.5} | changes)


def test_the_defaults_are_covered_and_what_is_said_of_them_is_what_is_run():
    stage, log_q_NT = grpo(), np.log([[0.2, 0.5], [0.9, 0.8]])
    assert beyond_theory(stage) == ""
    np.testing.assert_array_equal(
        fixed_points(stage, log_q_NT).lowest_N, stable_points(log_q_NT, 0.5, "group_std", 8).lowest_N
    )
    tilt = fixed_points(grpo(kl_in="reward", advantage="mean_only"), log_q_NT)
    np.testing.assert_allclose(tilt.lowest_N, theory.tilted(np.array([0.1, 0.72]), 0.5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kl_beta": 0.0}, "without a KL penalty"),
        ({"advantage": "critic"}, "a learned critic is the baseline"),
        ({"rewards": (Answer(), Letters())}, "the reward is another one than the answer alone"),
        ({"rewards": (Answer(weight=2.0),)}, "the reward is another one than the answer alone"),
        ({"updates": 2}, "updated on several times"),
        ({"staleness": 1}, "rollouts are stale"),
        ({"kl_estimator": "k3"}, "the gradient of k3 in the loss"),
        ({"kl_estimator": "k1"}, "the gradient of k1 in the loss"),
        ({"kl_in": "reward", "kl_estimator": "k2", "advantage": "mean_only"}, "the gradient of k2 in the reward"),
        ({"kl_in": "reward"}, "divided by the deviation of the group"),
        ({"hint_tokens": 2}, "hints give a part of the right completion"),
        ({"temperature": 0.5}, "drawn at another temperature than Q is measured at"),
        ({"mask_truncated": True}, "completions that were cut off are left out"),
        ({"filter": "resample"}, "the filter resample chooses"),
        ({"filter": "unsolved"}, "the filter unsolved chooses"),
        ({"advantage": "another"}, "the effect of the advantage another"),
    ],
)
def test_what_is_not_covered_gets_a_reason(changes, reason):
    assert reason in beyond_theory(grpo(**changes))


def test_a_second_phase_is_covered_where_its_reference_is_what_it_started_from():
    first = grpo()
    assert beyond_theory(first.model_copy(update={"init": first})) == ""
    assert beyond_theory(first.model_copy(update={"reference": "root"})) == ""
    second = first.model_copy(update={"init": first, "reference": "root"})
    assert beyond_theory(second) == "the reference is not what the stage started from"


def test_several_right_completions_are_not_covered():
    assert "several completions" in beyond_theory(grpo(StringTask(axis="composition", completion_format="trace")))


@pytest.mark.parametrize("advantage", ["mean_only", "leave_one_out"])
@pytest.mark.parametrize("estimator", ["exact", "k1"])
def test_a_kl_in_the_reward_that_is_not_divided_is_covered(advantage, estimator):
    assert beyond_theory(grpo(kl_in="reward", advantage=advantage, kl_estimator=estimator)) == ""
