"""Advantages: their values, and their expected gradients, by enumeration."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayexp.objectives.advantages import group_advantages
from tests.fixtures.tiny_policy import BETA, REWARDS, close, expected_gradient, gradient, mass_of, sequence_kl


@given(st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4), min_size=1, max_size=3))
def test_group_std_has_zero_mean_and_unit_population_std(rows):
    rewards_PG = torch.tensor(rows, dtype=torch.float64)
    advantages_PG, scale_P = group_advantages(rewards_PG, "group_std")
    mixed_P = rewards_PG.std(dim=1, unbiased=False) > 0
    close(advantages_PG.mean(dim=1), torch.zeros_like(scale_P))
    close(advantages_PG.std(dim=1, unbiased=False), mixed_P.double())
    close(scale_P, torch.where(mixed_P, rewards_PG.std(dim=1, unbiased=False), 1.0))


@given(st.lists(st.integers(0, 1), min_size=4, max_size=4))
def test_mean_only_centres_and_does_not_scale(row):
    rewards_PG = torch.tensor([row], dtype=torch.float64)
    advantages_PG, scale_P = group_advantages(rewards_PG, "mean_only")
    close(advantages_PG, rewards_PG - sum(row) / 4)
    assert scale_P.tolist() == [1.0]


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=4))
def test_leave_one_out_subtracts_the_mean_of_the_others(row):
    advantages_PG, _ = group_advantages(torch.tensor([row], dtype=torch.float64), "leave_one_out")
    close(advantages_PG[0], torch.tensor([reward - (sum(row) - reward) / 3 for reward in row], dtype=torch.float64))


@pytest.mark.parametrize(("kind", "scale"), [("group_std", 1.0), ("mean_only", 1.0), ("leave_one_out", 7 / 8)])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_a_group_of_equal_rewards_teaches_nothing(kind, scale, reward):
    """Use float32 as in the learner, in which the mean of several 0.1 is not exact."""
    advantages_PG, scale_P = group_advantages(torch.full((1, 8), reward), kind)
    torch.testing.assert_close(advantages_PG, torch.zeros(1, 8), rtol=0, atol=1e-6)
    assert scale_P.tolist() == [scale]


@pytest.mark.parametrize("group_size", [2, 3])
def test_expected_gradient_is_that_of_the_expected_reward(group_size):
    found = expected_gradient(REWARDS, group_size, kl_beta=0.0)
    close(found, -(1 - 1 / group_size) * gradient(lambda logits: (mass_of(logits) * REWARDS).sum()))


@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_keeps_the_whole_gradient(group_size):
    """Expect no factor 1 - 1/G, because no completion is part of its own baseline. The same holds for the KL in the
    reward, which is centred like rewards, and for the loss term of the exact KL."""
    reward = expected_gradient(REWARDS, group_size, kl_beta=0.0, advantage="leave_one_out")
    close(reward, -gradient(lambda logits: (mass_of(logits) * REWARDS).sum()))
    for estimator in ("k1", "exact"):
        kl = expected_gradient(group_size=group_size, kl_in="reward", kl_estimator=estimator, advantage="leave_one_out")
        close(kl, BETA * gradient(sequence_kl))
