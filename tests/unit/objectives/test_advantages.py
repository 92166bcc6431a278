"""Advantages: their values, and the expected gradient that they give, by enumeration."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayexp.objectives.advantages import group_advantages
from tests.fixtures.tiny_policy import REWARDS, close, expected_gradient, gradient, mass_of


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


@pytest.mark.parametrize("kind", ["group_std", "mean_only"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_a_group_of_equal_rewards_teaches_nothing(kind, reward):
    """In float32, as the learner has them; 0.1 has no exact mean."""
    advantages_PG, scale_P = group_advantages(torch.full((1, 8), reward), kind)
    torch.testing.assert_close(advantages_PG, torch.zeros(1, 8), rtol=0, atol=1e-6)
    assert scale_P.tolist() == [1.0]


@pytest.mark.parametrize("group_size", [2, 3])
def test_expected_gradient_is_that_of_the_expected_reward(group_size):
    found = expected_gradient(REWARDS, group_size, kl_beta=0.0)
    close(found, -(1 - 1 / group_size) * gradient(lambda logits: (mass_of(logits) * REWARDS).sum()))
