"""The mathematics of GRPO, by enumeration of every completion (and every group of two) of a tiny policy.

Three tokens, 0 ends a completion, at most two tokens: the completions are 0, 10, 11, 12, 20, 21 and 22. The policy is
one row of logits for each prefix it can be asked at: the empty one, 1 and 2. All in float64.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayexp.rl.objectives import (
    GRPOSettings,
    Rollouts,
    group_advantages,
    grpo_loss,
    kl_to_reference,
    next_token_loss,
    sequence_sums,
)

TOKENS = torch.tensor([[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]])
MASK = torch.tensor([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1]], dtype=torch.float64)
REWARDS = torch.tensor([0, 1, 0, 0, 1, 0, 0.5], dtype=torch.float64)
BETA = 0.7
ESTIMATORS = ("exact", "k1", "k2", "k3")


def random_logits(seed):
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logprobs_of(logits_33):
    """policy_NCV of all seven completions: the first row, then that of the prefix which the first token makes."""
    rows = logits_33.log_softmax(dim=-1)
    return torch.stack([rows[0].expand(7, 3), rows[TOKENS[:, 0]]], dim=1)


def mass_of(logits_33):
    """Probability of each of the seven completions."""
    chosen = logprobs_of(logits_33).gather(-1, TOKENS[..., None]).squeeze(-1)
    return (chosen * MASK).sum(dim=1).exp()


REFERENCE = logprobs_of(random_logits(1))


def gradient(function):
    """Gradient of ``function(logits)`` at the policy."""
    logits = random_logits(0).requires_grad_()
    (result,) = torch.autograd.grad(function(logits), logits)
    return result


def sequence_kl(logits_33):
    """KL between the two distributions of completions."""
    mass = mass_of(logits_33)
    return (mass * (mass.log() - mass_of(random_logits(1)).log())).sum()


def prefix_kl(logits_33, forward=False):
    """The KL (reverse, or forward: KL(q||p)) of every prefix, weighted by how often the policy visits it. The weights
    carry no gradient: this is the part of the KL's gradient that does not see the choice of prefixes."""
    p, q = logprobs_of(logits_33), REFERENCE
    kl_NC = (q.exp() * (q - p)).sum(dim=-1) if forward else (p.exp() * (p - q)).sum(dim=-1)
    return (mass_of(logits_33).detach()[:, None] * kl_NC * MASK).sum()


def settings(**changes):
    default = GRPOSettings(BETA, "exact", "loss", "mean_only", "token_sum", clip_ratio=0.2)
    return GRPOSettings(**{**default.__dict__, **changes})


def expected_gradient(rewards_N=None, group_size=2, **changes):
    """Mean over all groups of completions of the gradient of the loss per sequence, weighted by their probability."""
    mass = mass_of(random_logits(0))
    rewards_N = torch.zeros(7, dtype=torch.float64) if rewards_N is None else rewards_N
    total = torch.zeros(3, 3, dtype=torch.float64)
    for group in map(list, itertools.product(range(7), repeat=group_size)):

        def loss(logits, group=group):
            rollouts = Rollouts(TOKENS[group], MASK[group], rewards_N[group][None], REFERENCE[group])
            return grpo_loss(logprobs_of(logits)[group], rollouts, settings(**changes))[0] / group_size

        total += mass[group].prod() * gradient(loss)
    return total


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_seven_completions_are_all_there_is():
    close(mass_of(random_logits(0)).sum(), torch.tensor(1.0, dtype=torch.float64))


# KL estimators


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_value_of_every_kl_estimator(estimator):
    """In expectation over completions: the KL between distributions of completions for exact, k1 and k3, not for k2."""
    logits = random_logits(0)
    kl_NC = kl_to_reference(logprobs_of(logits), REFERENCE, TOKENS, MASK, estimator)
    value = (mass_of(logits)[:, None] * kl_NC).sum()
    if estimator == "k2":
        assert abs(value - sequence_kl(logits)) > 0.01
    else:
        close(value, sequence_kl(logits))
    assert (kl_NC >= 0).all() == (estimator != "k1")


def test_unknown_estimators_are_refused():
    with pytest.raises(ValueError, match="allowed: exact, k1, k2, k3"):
        kl_to_reference(REFERENCE, REFERENCE, TOKENS, MASK, "k4")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_every_kl_estimator_in_the_loss(estimator):
    """Without rewards only the KL is left of the loss."""
    expected = {
        "exact": gradient(prefix_kl),
        "k1": torch.zeros(3, 3, dtype=torch.float64),
        "k2": gradient(prefix_kl),
        "k3": gradient(lambda logits: prefix_kl(logits, forward=True)),
    }
    close(expected_gradient(kl_estimator=estimator), BETA * expected[estimator])


def test_no_kl_in_the_loss_sees_the_choice_of_prefixes():
    """The gradients above are not that of the KL between the two distributions of completions."""
    assert (gradient(prefix_kl) - gradient(sequence_kl)).abs().max() > 0.01
    assert (gradient(lambda logits: prefix_kl(logits, forward=True)) - gradient(prefix_kl)).abs().max() > 0.01


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_a_policy_that_equals_its_reference_gets_no_gradient_at_all(kl_in):
    """Not even rounding noise, which Adam would blow up to full steps."""

    def loss(logits):
        policy_NCV = logprobs_of(logits.float())
        rollouts = Rollouts(TOKENS[:6], MASK[:6].float(), torch.zeros(2, 3), policy_NCV[:6].detach())
        return grpo_loss(policy_NCV[:6], rollouts, settings(kl_in=kl_in))[0]

    assert not gradient(loss).any()


@pytest.mark.parametrize("group_size", [2, 3])
def test_gradient_of_k1_in_the_reward(group_size):
    """The full gradient of KL(pi||q), times 1 - 1/G: every completion is part of its own baseline."""
    found = expected_gradient(group_size=group_size, kl_in="reward", kl_estimator="k1")
    close(found, (1 - 1 / group_size) * BETA * gradient(sequence_kl))


@pytest.mark.parametrize("group_size", [2, 3])
def test_gradient_of_exact_in_the_reward(group_size):
    """That of k1: the part that pushes visits goes through the baseline, and the part of the loss is scaled alike."""
    found = expected_gradient(group_size=group_size, kl_in="reward", kl_estimator="exact")
    close(found, (1 - 1 / group_size) * BETA * gradient(sequence_kl))


def test_gradient_of_k3_in_the_reward():
    """It pushes visits as k1 does, but at each prefix it lacks the gradient of the forward KL(q||p)."""
    found = expected_gradient(kl_in="reward", kl_estimator="k3")
    forward = gradient(lambda logits: prefix_kl(logits, forward=True))
    close(found, (1 - 1 / 2) * BETA * (gradient(sequence_kl) - forward))


# Policy gradient


@pytest.mark.parametrize("group_size", [2, 3])
def test_expected_gradient_is_that_of_the_expected_reward(group_size):
    found = expected_gradient(REWARDS, group_size, kl_beta=0.0)
    close(found, -(1 - 1 / group_size) * gradient(lambda logits: (mass_of(logits) * REWARDS).sum()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_reward_and_kl_add_up(estimator, kl_in):
    found = expected_gradient(REWARDS, kl_in=kl_in, kl_estimator=estimator)
    alone = expected_gradient(kl_in=kl_in, kl_estimator=estimator)
    close(found - alone, expected_gradient(REWARDS, kl_beta=0.0))


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


# The loss itself


def by_hand(policy_NCV, rollouts, s):
    """The loss, sequence by sequence and token by token, from its definition."""
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
        scale = rewards.std(unbiased=False) if s.advantage == "group_std" and rewards.unique().numel() > 1 else 1.0
        advantage = (rewards[n % rows] - rewards.mean()) / scale
        paid = [sum(kl[m]).detach() if rollouts.old_kl_N is None else rollouts.old_kl_N[m] for m in group]
        if s.kl_in == "reward":
            advantage = advantage - s.kl_beta * (paid[n % rows] - sum(paid) / rows) / scale
        parts = []
        for i, c in enumerate(tokens[n]):
            old = logprob[n][i].detach() if rollouts.old_logprobs_NC is None else rollouts.old_logprobs_NC[n, c]
            ratio = torch.exp(logprob[n][i] - old)
            part = -torch.minimum(ratio * advantage, ratio.clamp(1 - s.clip_ratio, 1 + s.clip_ratio) * advantage)
            if s.kl_in == "loss":
                part = part + s.kl_beta * kl[n][i]
            elif s.kl_estimator == "exact":
                part = part + (1 - 1 / rows) * s.kl_beta * kl[n][i] / scale
            parts.append(part)
        total = total + sum(parts) / (len(parts) if s.loss_reduction == "sequence_mean" else 1)
    return total


def rollouts_of(old=False):
    """Two groups of three completions, one of a single token; ``old``: drawn from a policy that has moved on since."""
    rows = [0, 1, 3, 4, 5, 6]
    generator = torch.Generator().manual_seed(5)
    drift = torch.randn(6, 2, generator=generator, dtype=torch.float64) * 0.3
    logprobs_NC = logprobs_of(random_logits(0))[rows].gather(-1, TOKENS[rows][..., None]).squeeze(-1)
    return rows, Rollouts(
        TOKENS[rows],
        MASK[rows],
        torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64),
        REFERENCE[rows],
        logprobs_NC + drift if old else None,
        torch.rand(6, generator=generator, dtype=torch.float64) if old else None,
    )


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("loss_reduction", ["token_sum", "sequence_mean"])
@pytest.mark.parametrize("advantage", ["mean_only", "group_std"])
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_loss_and_its_gradient_follow_the_definition(estimator, kl_in, advantage, loss_reduction, old):
    rows, rollouts = rollouts_of(old)
    s = settings(kl_estimator=estimator, kl_in=kl_in, advantage=advantage, loss_reduction=loss_reduction)
    policy_NCV = logprobs_of(random_logits(0))[rows]
    close(grpo_loss(policy_NCV, rollouts, s)[0], by_hand(policy_NCV, rollouts, s))
    close(
        gradient(lambda logits: grpo_loss(logprobs_of(logits)[rows], rollouts, s)[0]),
        gradient(lambda logits: by_hand(logprobs_of(logits)[rows], rollouts, s)),
    )


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_on_policy_is_the_case_of_old_logprobs_equal_to_the_current_ones(kl_in):
    rows, rollouts = rollouts_of()
    current_NC = logprobs_of(random_logits(0))[rows].gather(-1, TOKENS[rows][..., None]).squeeze(-1)
    explicit = Rollouts(rollouts.tokens_NC, rollouts.mask_NC, rollouts.rewards_PG, rollouts.reference_NCV, current_NC)
    losses = [lambda x, r=r: grpo_loss(logprobs_of(x)[rows], r, settings(kl_in=kl_in))[0] for r in (rollouts, explicit)]
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
def test_values_under_the_mask_never_matter(estimator, kl_in, policy, reference, old):
    """Log-probabilities at padding, also those whose difference is infinite or has an exponential that is."""
    rows, rollouts = rollouts_of(old=True)
    hidden = rollouts.mask_NC == 0
    assert hidden.any()
    s = settings(kl_estimator=estimator, kl_in=kl_in, loss_reduction="sequence_mean")

    def outcome(disturbed):
        def changed(tensor, value):
            return torch.where(hidden.view(6, 2, *[1] * (tensor.ndim - 2)), value, tensor) if disturbed else tensor

        logits = random_logits(0).requires_grad_()
        policy_NCV = changed(logprobs_of(logits)[rows], policy)
        loss, statistics = grpo_loss(
            policy_NCV,
            Rollouts(
                changed(rollouts.tokens_NC, 2),
                rollouts.mask_NC,
                rollouts.rewards_PG,
                changed(rollouts.reference_NCV, reference),
                changed(rollouts.old_logprobs_NC, old),
                rollouts.old_kl_N,
            ),
            s,
        )
        return loss, torch.autograd.grad(loss, logits)[0], statistics

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
    """The first completion is better (or worse) than its partner and ``ratio`` times as likely as before."""
    token_NC = TOKENS[[0, 1]]
    mask_NC = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    old_NC = (
        logprobs_of(random_logits(0))[[0, 1]].gather(-1, token_NC[..., None]).squeeze(-1) - torch.tensor(ratio).log()
    )
    rewards_PG = torch.tensor([[1.0, 0.0] if better else [0.0, 1.0]], dtype=torch.float64)
    rollouts = Rollouts(token_NC, mask_NC, rewards_PG, old_logprobs_NC=old_NC)
    found = gradient(lambda logits: grpo_loss(logprobs_of(logits)[[0, 1]], rollouts, settings())[0])
    assert found.any() == alive
    clipped = grpo_loss(logprobs_of(random_logits(0))[[0, 1]], rollouts, settings())[1]["clipped"]
    assert clipped == (not alive)


def test_clipped_tokens_are_those_whose_gradient_is_cut():
    """Every token of six completions at every ratio, against autograd; a token without an advantage has none to cut."""
    rows, rollouts = rollouts_of()
    policy_NCV = logprobs_of(random_logits(0))[rows].requires_grad_()
    logprobs_NC = policy_NCV.detach().gather(-1, TOKENS[rows][..., None]).squeeze(-1)
    for ratio in (0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0):
        moved = replace(rollouts, reference_NCV=None, old_logprobs_NC=logprobs_NC - math.log(ratio))
        loss, statistics = grpo_loss(policy_NCV, moved, settings())
        alive_NC = torch.autograd.grad(loss, policy_NCV)[0].any(dim=-1)
        advantage_N1 = group_advantages(moved.rewards_PG, "mean_only")[0].view(-1, 1)
        cut_NC = ~alive_NC & (advantage_N1 != 0) & (moved.mask_NC > 0)
        assert statistics["clipped"] == sequence_sums(cut_NC.double(), moved.mask_NC, "sequence_mean").sum()
        assert cut_NC.any() == (abs(ratio - 1) > 0.2)


def test_statistics_are_sums_over_sequences():
    rows, rollouts = rollouts_of()
    policy_NCV = logprobs_of(random_logits(0))[rows]
    statistics = grpo_loss(policy_NCV, rollouts, settings())[1]
    kl_NC = kl_to_reference(policy_NCV, REFERENCE[rows], TOKENS[rows], MASK[rows], "exact")
    close(statistics["kl"], kl_NC.sum())
    entropy_NC = torch.distributions.Categorical(logits=policy_NCV).entropy()
    close(statistics["entropy"], sequence_sums(entropy_NC, MASK[rows], "sequence_mean").sum())
    assert statistics["clipped"] == 0


# Next-token loss


@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.parametrize("last_logits", [True, False])
def test_next_token_loss_is_the_negative_log_likelihood_of_each_row(start, last_logits):
    generator = torch.Generator().manual_seed(2)
    logits_NTV = torch.randn(4, 6, 5, generator=generator)
    tokens_NT = torch.randint(5, (4, 6), generator=generator)
    by_hand_N = [
        -sum(logits_NTV[n, t - 1].double().softmax(dim=0)[tokens_NT[n, t]].log() for t in range(start, 6))
        for n in range(4)
    ]
    nll_N = next_token_loss(logits_NTV if last_logits else logits_NTV[:, :-1], tokens_NT, start)
    torch.testing.assert_close(nll_N.double(), torch.stack(by_hand_N), rtol=1e-6, atol=1e-6)
