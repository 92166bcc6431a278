"""The loss: against its definition token by token, its independence of padding, and the tokens that the clip cuts."""

import math
from dataclasses import replace

import pytest
import torch

from rayexp.objectives.advantages import ADVANTAGES, group_advantages
from rayexp.objectives.kl import ESTIMATORS
from tests.fixtures.tiny_policy import (
    REWARDS,
    TOKENS,
    Rollouts,
    close,
    expected_gradient,
    gradient,
    logprobs_of,
    loss_of,
    random_logits,
    rollouts_of,
    settings,
    statistics_of,
)


def by_hand(policy_NCV, rollouts, s):
    """Return the loss by its definition, sequence by sequence and token by token."""
    rows = rollouts.rewards_PG.shape[1]
    numbers = range(len(rollouts.tokens_NC))
    tokens = [[c for c in range(2) if rollouts.mask_NC[n, c]] for n in numbers]
    logprob = [[policy_NCV[n, c, rollouts.tokens_NC[n, c]] for c in tokens[n]] for n in numbers]
    kl = []
    for n in numbers:
        ratios = [policy_NCV[n, c] - rollouts.reference_NCV[n, c] for c in tokens[n]]
        at_token = [ratio[rollouts.tokens_NC[n, c]] for c, ratio in zip(tokens[n], ratios, strict=True)]
        kl.append(
            {
                "exact": [(policy_NCV[n, c].exp() * ratio).sum() for c, ratio in zip(tokens[n], ratios, strict=True)],
                "k1": at_token,
                "k2": [ratio**2 / 2 for ratio in at_token],
                "k3": [torch.exp(-ratio) - 1 + ratio for ratio in at_token],
            }[s.kl_estimator]
        )
    total = 0.0
    for n in numbers:
        group = range(n // rows * rows, n // rows * rows + rows)
        rewards = rollouts.rewards_PG[n // rows]
        scale = 1 - 1 / rows if s.advantage == "leave_one_out" else 1.0
        if s.advantage == "group_std" and rewards.unique().numel() > 1:
            scale = rewards.std(unbiased=False)
        kept = 1.0 if s.advantage == "critic" else 1 - 1 / rows
        old_kl = {m: [] if rollouts.old_kl_NC is None else list(rollouts.old_kl_NC[m, tokens[m]]) for m in group}
        paid = {m: [x.detach() for x in old_kl[m] or kl[m]] for m in group}
        spent = [sum(paid[m]) for m in group]
        parts = []
        for i, c in enumerate(tokens[n]):
            if s.advantage == "critic":
                advantage = rewards[n % rows] - rollouts.values_NC[n, c]
                if s.kl_in == "reward":
                    advantage = advantage - s.kl_beta * sum(paid[n][i:])
            else:
                advantage = (rewards[n % rows] - rewards.mean()) / scale
                if s.kl_in == "reward":
                    advantage = advantage - s.kl_beta * (spent[n % rows] - sum(spent) / rows) / scale
            old = logprob[n][i].detach() if rollouts.old_logprob_NC is None else rollouts.old_logprob_NC[n, c]
            ratio = torch.exp(logprob[n][i] - old)
            part = -torch.minimum(ratio * advantage, ratio.clamp(1 - s.clip_ratio, 1 + s.clip_ratio) * advantage)
            if s.kl_in == "loss":
                part = part + s.kl_beta * kl[n][i]
            elif s.kl_estimator == "exact":
                part = part + kept * s.kl_beta * kl[n][i] / scale
            parts.append(part)
        total = total + sum(parts) / (len(parts) if s.loss_reduction == "sequence_mean" else 1)
    return total


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("loss_reduction", ["token_sum", "sequence_mean"])
@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_loss_and_its_gradient_follow_the_definition(estimator, kl_in, advantage, loss_reduction, old):
    rows, rollouts = rollouts_of(old)
    s = settings(kl_estimator=estimator, kl_in=kl_in, advantage=advantage, loss_reduction=loss_reduction)
    policy_NCV = logprobs_of(random_logits(0))[rows]
    close(loss_of(policy_NCV, rollouts, s).mean(1), by_hand(policy_NCV, rollouts, s))
    close(
        gradient(lambda logits: loss_of(logprobs_of(logits)[rows], rollouts, s).mean(1)),
        gradient(lambda logits: by_hand(logprobs_of(logits)[rows], rollouts, s)),
    )


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_on_policy_is_the_case_of_old_logprobs_equal_to_the_current_ones(kl_in):
    rows, rollouts = rollouts_of()
    current_NC = logprobs_of(random_logits(0))[rows].gather(-1, TOKENS[rows][..., None]).squeeze(-1)
    explicit = replace(rollouts, old_logprob_NC=current_NC)
    losses = [
        lambda x, r=r: loss_of(logprobs_of(x)[rows], r, settings(kl_in=kl_in)).mean(6) for r in (rollouts, explicit)
    ]
    assert losses[0](random_logits(0)) == losses[1](random_logits(0))
    assert torch.equal(gradient(losses[0]), gradient(losses[1]))


@pytest.mark.parametrize(
    ("policy", "reference", "old"),
    [
        (-1.5, -4.0, -9.0),
        (-2000.0, -1.0, -1.0),
        (-1.0, -2000.0, -2000.0),
        (-math.inf, -1.0, -1.0),
        (-1.0, -math.inf, -math.inf),
    ],
)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("advantage", ["mean_only", "critic"])
def test_values_under_the_mask_never_matter(advantage, estimator, kl_in, policy, reference, old):
    """Vary log-probabilities at padding. Include pairs whose difference, or its exponential, is infinite."""
    rows, rollouts = rollouts_of(old=True)
    hidden = rollouts.mask_NC == 0
    assert hidden.any()
    s = settings(kl_estimator=estimator, kl_in=kl_in, loss_reduction="sequence_mean", advantage=advantage)

    def outcome(disturbed):
        def changed(tensor, value):
            return torch.where(hidden.view(6, 2, *[1] * (tensor.ndim - 2)), value, tensor) if disturbed else tensor

        logits = random_logits(0).requires_grad_()
        policy_NCV = changed(logprobs_of(logits)[rows], policy)
        read = replace(
            rollouts,
            tokens_NC=changed(rollouts.tokens_NC, 2),
            reference_NCV=changed(rollouts.reference_NCV, reference),
            old_logprob_NC=changed(rollouts.old_logprob_NC, old),
            values_NC=changed(rollouts.values_NC, old),
        )
        loss = loss_of(policy_NCV, read, s)
        gradient = torch.autograd.grad(loss.mean(6), logits)[0]
        return vars(loss), gradient, statistics_of(policy_NCV, read, s)

    torch.testing.assert_close(outcome(disturbed=True), outcome(disturbed=False), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("better", "ratio", "alive"),
    [
        (True, 1.3, False),
        (True, 1.1, True),
        (True, 0.5, True),
        (False, 0.7, False),
        (False, 0.9, True),
        (False, 1.9, True),
    ],
)
def test_clipping_stops_the_gradient_only_where_the_policy_already_went_far_enough(better, ratio, alive):
    """Make the first completion better (or worse) than its partner, and ``ratio`` times as likely as before."""
    token_NC = TOKENS[[0, 1]]
    mask_NC = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    old_NC = (
        logprobs_of(random_logits(0))[[0, 1]].gather(-1, token_NC[..., None]).squeeze(-1) - torch.tensor(ratio).log()
    )
    rewards_PG = torch.tensor([[1.0, 0.0] if better else [0.0, 1.0]], dtype=torch.float64)
    rollouts = Rollouts(token_NC, mask_NC, rewards_PG, old_logprob_NC=old_NC)
    found = gradient(lambda logits: loss_of(logprobs_of(logits)[[0, 1]], rollouts, settings()).mean(2))
    assert found.any() == alive
    clipped_NC = loss_of(logprobs_of(random_logits(0))[[0, 1]], rollouts, settings()).clipped_NC
    assert clipped_NC.tolist() == [[not alive, False], [False, False]]


def test_clipped_tokens_are_those_whose_gradient_is_cut():
    """Compare every token of six completions at every ratio with autograd. A token without an advantage has no gradient
    to cut."""
    rows, rollouts = rollouts_of()
    policy_NCV = logprobs_of(random_logits(0))[rows].requires_grad_()
    logprobs_NC = policy_NCV.detach().gather(-1, TOKENS[rows][..., None]).squeeze(-1)
    for ratio in (0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0):
        moved = replace(rollouts, reference_NCV=None, old_logprob_NC=logprobs_NC - math.log(ratio))
        loss = loss_of(policy_NCV, moved, settings())
        clipped_NC, alive_NC = loss.clipped_NC, torch.autograd.grad(loss.mean(6), policy_NCV)[0].any(dim=-1)
        advantage_N1 = group_advantages(moved.rewards_PG, "mean_only")[0].view(-1, 1)
        assert torch.equal(clipped_NC, ~alive_NC & (advantage_N1 != 0) & (moved.mask_NC > 0))
        assert clipped_NC.any() == (abs(ratio - 1) > 0.2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_reward_and_kl_add_up(estimator, kl_in):
    found = expected_gradient(REWARDS, kl_in=kl_in, kl_estimator=estimator)
    alone = expected_gradient(kl_in=kl_in, kl_estimator=estimator)
    close(found - alone, expected_gradient(REWARDS, kl_beta=0.0))
