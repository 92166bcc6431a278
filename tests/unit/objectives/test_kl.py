"""The KL to the reference: value and gradient of every estimator, in the loss and in the reward, by enumeration."""

import pytest
import torch

from rayexp.objectives.kl import ESTIMATORS, kl_to_reference
from tests.fixtures.tiny_policy import (
    BETA,
    MASK,
    REFERENCE,
    TOKENS,
    Rollouts,
    close,
    expected_gradient,
    gradient,
    logprobs_of,
    loss_of,
    mass_of,
    prefix_kl,
    random_logits,
    sequence_kl,
    settings,
)


def test_the_seven_completions_are_all_there_is():
    close(mass_of(random_logits(0)).sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_value_of_every_kl_estimator(estimator):
    """Take the expectation over completions. For exact, k1 and k3, but not for k2, it is the KL between the
    distributions of completions."""
    logits = random_logits(0)
    kl_NC = kl_to_reference(logprobs_of(logits), REFERENCE, TOKENS, MASK, estimator)
    value = (mass_of(logits)[:, None] * kl_NC).sum()
    if estimator == "k2":
        assert abs(value - sequence_kl(logits)) > 0.01
    else:
        close(value, sequence_kl(logits))
    assert (kl_NC >= 0).all() == (estimator != "k1")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_every_kl_estimator_in_the_loss(estimator):
    """Leave out rewards, so that the loss is the KL alone."""
    expected = {
        "exact": gradient(prefix_kl),
        "k1": torch.zeros(3, 3, dtype=torch.float64),
        "k2": gradient(prefix_kl),
        "k3": gradient(lambda logits: prefix_kl(logits, forward=True)),
    }
    close(expected_gradient(kl_estimator=estimator), BETA * expected[estimator])


def test_k3_times_the_ratio_has_the_gradient_of_exact():
    """Use TRL's default loss. On policy the ratio is 1, but its gradient is not 0."""
    mass_N = mass_of(random_logits(0))

    def expected(logits):
        logprobs_NCV = logprobs_of(logits)
        chosen_NC = logprobs_NCV.gather(-1, TOKENS[..., None]).squeeze(-1)
        ratio_NC = (chosen_NC - chosen_NC.detach()).exp()
        kl_NC = kl_to_reference(logprobs_NCV, REFERENCE, TOKENS, MASK, "k3")
        return (mass_N[:, None] * ratio_NC * kl_NC).sum()

    close(gradient(expected), gradient(prefix_kl))


def test_no_kl_in_the_loss_sees_the_choice_of_prefixes():
    """Compare the gradients above with that of the KL between the two distributions of completions. They differ."""
    assert (gradient(prefix_kl) - gradient(sequence_kl)).abs().max() > 0.01
    assert (gradient(lambda logits: prefix_kl(logits, forward=True)) - gradient(prefix_kl)).abs().max() > 0.01


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_a_policy_that_equals_its_reference_gets_no_gradient_at_all(kl_in):
    """Expect not even rounding noise, which Adam would amplify to full steps."""

    def loss(logits):
        policy_NCV = logprobs_of(logits.float())
        rollouts = Rollouts(TOKENS[:6], MASK[:6].float(), torch.zeros(2, 3), policy_NCV[:6].detach())
        return loss_of(policy_NCV[:6], rollouts, settings(kl_in=kl_in)).loss_N.sum()

    assert not gradient(loss).any()


@pytest.mark.parametrize("group_size", [2, 3])
def test_gradient_of_k1_in_the_reward(group_size):
    """Expect 1 - 1/G of the full gradient of KL(pi||q), because every completion is part of its own baseline."""
    found = expected_gradient(group_size=group_size, kl_in="reward", kl_estimator="k1")
    close(found, (1 - 1 / group_size) * BETA * gradient(sequence_kl))


@pytest.mark.parametrize("group_size", [2, 3])
def test_gradient_of_exact_in_the_reward(group_size):
    """Expect k1's gradient. The part for visited prefixes goes through the baseline, and the loss term has the same
    scale."""
    found = expected_gradient(group_size=group_size, kl_in="reward", kl_estimator="exact")
    close(found, (1 - 1 / group_size) * BETA * gradient(sequence_kl))


def test_gradient_of_k3_in_the_reward():
    """Expect k1's gradient less that of the forward KL(q||p) at each prefix."""
    found = expected_gradient(kl_in="reward", kl_estimator="k3")
    forward = gradient(lambda logits: prefix_kl(logits, forward=True))
    close(found, (1 - 1 / 2) * BETA * (gradient(sequence_kl) - forward))
