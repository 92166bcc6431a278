"""A critic's values as the baseline: the expected gradient, by enumeration."""

import pytest
import torch

from rayexp.objectives.advantages import Earnings, advantages_of
from tests.fixtures.tiny_policy import (
    BETA,
    MASK,
    REWARDS,
    TOKENS,
    close,
    expected_gradient,
    gradient,
    mass_of,
    prefix_kl,
    random_logits,
    sequence_kl,
)


def exact_values():
    """Return E[R | prefix] before each token of the seven completions, which are the values of a perfect critic."""
    mass, first = mass_of(random_logits(0)), TOKENS[:, 0]
    expected = [(mass * REWARDS)[first == token].sum() / mass[first == token].sum() for token in range(3)]
    return torch.stack([(mass * REWARDS).sum().expand(7), torch.stack(expected)[first]], dim=1)


def any_values():
    """Return an arbitrary number for each of the three prefixes."""
    values = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    return torch.stack([values[0].expand(7), values[1:][TOKENS[:, 0]]], dim=1)


@pytest.mark.parametrize("values", [exact_values, any_values])
@pytest.mark.parametrize("group_size", [2, 3])
def test_a_critic_keeps_the_whole_gradient(group_size, values):
    """Use the exact values, and any others that depend on the prefix alone."""
    found = expected_gradient(REWARDS, group_size, values(), kl_beta=0.0, advantage="critic")
    close(found, -gradient(lambda logits: (mass_of(logits) * REWARDS).sum()))


def test_values_that_know_the_token_would_not():
    """Show that the test above can fail: with the return itself as baseline, no gradient is left."""
    found = expected_gradient(REWARDS, values_NC=REWARDS[:, None].expand(7, 2), kl_beta=0.0, advantage="critic")
    assert not found.any()


def test_exact_values_leave_less_noise_than_the_expected_reward():
    """Compare the expected squares of all tokens' advantages. The expected reward is the limit of a large group's
    mean."""
    mass, earnings = mass_of(random_logits(0)), Earnings(REWARDS[:, None], MASK)

    def noise(values_NC):
        return (mass[:, None] * advantages_of("critic", earnings, values_NC).advantage_NC.square()).sum()

    assert noise(exact_values()) < 0.9 * noise((mass * REWARDS).sum().expand(7, 2))


@pytest.mark.parametrize("values", [exact_values, any_values])
def test_with_a_critic_each_token_answers_for_its_own_kl_and_that_of_later_ones(values):
    """Expect the full gradient of the KL between the two distributions of completions, from the estimators that have
    it."""
    forward = gradient(lambda logits: prefix_kl(logits, forward=True))
    expected = {"k1": gradient(sequence_kl), "exact": gradient(sequence_kl), "k3": gradient(sequence_kl) - forward}
    for estimator, kl in expected.items():
        found = expected_gradient(values_NC=values(), kl_in="reward", kl_estimator=estimator, advantage="critic")
        close(found, BETA * kl)


def test_returns_are_what_is_earned_from_a_token_on():
    mask_NC = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    kl_NC = torch.tensor([[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]])
    earnings = Earnings(torch.tensor([[1.0, 0.0]]), mask_NC, kl_NC, kl_beta=0.5)
    assert earnings.returns_NC().tolist() == [[-2.5, -2.0, -1.0], [-4.0, 0.0, 0.0]]
    assert Earnings(torch.tensor([[1.0, 0.0]]), mask_NC).returns_NC().tolist() == [[1, 1, 1], [0, 0, 0]]


def test_a_critic_without_values_is_refused():
    with pytest.raises(ValueError, match="advantage='critic' needs values_NC, the values of a critic"):
        advantages_of("critic", Earnings(torch.zeros(1, 2), torch.ones(2, 3)))
