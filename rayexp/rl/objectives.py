"""The objectives, as pure functions of tensors.

Shape suffixes: _N sequences (prompts times group, a group's members side by side), _T tokens of a sample, _C tokens of
a completion, _V vocabulary, _P prompts, _G members of a group.

KL to the reference q of a policy p, at the prefixes that p visited (y is the token sampled there):

    exact  sum_v p(v) (log p(v) - log q(v))      value exact at each prefix, no sampling noise over v
    k1     log p(y) - log q(y)                   unbiased value, any sign
    k2     (log p(y) - log q(y))^2 / 2           biased value
    k3     q(y)/p(y) - 1 - log(q(y)/p(y))        unbiased value, never negative

In the loss they are differentiated as they stand. Only ``exact`` and ``k2`` then have, in expectation, the gradient of
the KL at each prefix; that of k1 is zero and that of k3 is the gradient of the forward KL(q||p). None of them sees that
the policy also chooses which prefixes it visits. In the reward the estimate is a number that is subtracted from the
sequence's reward. The group's mean as baseline leaves 1 - 1/G of every gradient that goes through the reward, that of
the task's reward included; so much of the full gradient of the KL between the two distributions of completions is what
k1 gives there, k3 the same less 1 - 1/G of the gradient of the forward KL at each prefix. ``exact`` as a number carries
only the push on visits; the loss term that it adds, scaled alike, carries its own gradient at each prefix, and the sum
is that of k1 with less noise. tests/unit/objectives/test_objectives.py proves all of this by enumeration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def next_token_loss(logits_NTV: Tensor, tokens_NT: Tensor, start: int = 1) -> Tensor:
    """Negative log-likelihood of tokens ``start ..`` of each row, summed over the row: nll_N, in nats.

    ``logits_NTV[:, t]`` predicts ``tokens_NT[:, t + 1]``; the logits of the last token may be left out.
    """
    targets_NT = tokens_NT[:, start:]
    predictions_NTV = logits_NTV[:, start - 1 : tokens_NT.shape[1] - 1]
    nll = functional.cross_entropy(predictions_NTV.flatten(0, 1).float(), targets_NT.flatten(), reduction="none")
    return nll.view(targets_NT.shape).sum(dim=1)


def group_advantages(rewards_PG: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """advantages_PG and the scale_P they were divided by.

    ``group_std``: (r - mean) / std over the group (DeepSeekMath, eq. 4), with the population's std. ``mean_only``:
    r - mean (Dr. GRPO). A group whose rewards are all equal has no preference: advantage 0, scale 1.
    """
    differ_P1 = rewards_PG.amax(dim=1, keepdim=True) > rewards_PG.amin(dim=1, keepdim=True)
    # Rounding can make the mean of equal numbers another number: what does not differ is not centred, but zero.
    centred_PG = torch.where(differ_P1, rewards_PG - rewards_PG.mean(dim=1, keepdim=True), 0.0)
    scale_P = torch.ones_like(rewards_PG[:, 0])
    if kind == "group_std":
        std_P = centred_PG.square().mean(dim=1).sqrt()
        scale_P = torch.where(std_P > 0, std_P, scale_P)
    return centred_PG / scale_P[:, None], scale_P


def masked(values_NC: Tensor, mask_NC: Tensor) -> Tensor:
    """Replace what is under the mask by 0. A product would not do: at padding nothing bounds a log-ratio, so that its
    exponential can overflow, and an infinity times 0 is NaN, in the value or in the gradient."""
    return torch.where(mask_NC > 0, values_NC, 0.0)


def kl_to_reference(
    policy_NCV: Tensor, reference_NCV: Tensor, tokens_NC: Tensor, mask_NC: Tensor, estimator: str
) -> Tensor:
    """Return kl_NC by one of the estimators above, from log-probabilities over the vocabulary; 0 under the mask."""
    if estimator == "exact":
        # The log-ratio's own gradient is sum_v grad p(v) = 0. Left to autograd it is rounding noise instead, which Adam
        # would blow up to full steps; without it, a policy that equals its reference gets a gradient of exactly zero.
        log_ratio_NCV = masked((policy_NCV - reference_NCV).detach(), mask_NC[..., None])
        return (policy_NCV.exp() * log_ratio_NCV).sum(dim=-1)
    index = tokens_NC[..., None]
    log_ratio_NC = masked((policy_NCV.gather(-1, index) - reference_NCV.gather(-1, index)).squeeze(-1), mask_NC)
    match estimator:
        case "k1":
            return log_ratio_NC
        case "k2":
            return log_ratio_NC.square() / 2
        case "k3":
            return torch.expm1(-log_ratio_NC) + log_ratio_NC
    raise ValueError(f"kl_estimator is {estimator!r}; allowed: exact, k1, k2, k3")


@dataclass(frozen=True)
class Rollouts:
    """Completions of one shape of prompt, as the loss reads them; padding is on the right and masked out."""

    tokens_NC: Tensor  # int64
    mask_NC: Tensor  # float, 1 on the completion, <eos> included
    rewards_PG: Tensor  # float, P * G = N
    reference_NCV: Tensor | None = None  # log-probabilities of the reference; None where kl_beta is 0
    old_logprobs_NC: Tensor | None = (
        None  # of the policy that drew them, or that the first update started from; None: this
    )
    old_kl_N: Tensor | None = None  # its KL per sequence, for kl_in="reward"; None: this one


@dataclass(frozen=True)
class GRPOSettings:
    """The part of a GRPO stage that the loss reads; see ``spec.GRPO``."""

    kl_beta: float
    kl_estimator: str
    kl_in: str
    advantage: str
    loss_reduction: str
    clip_ratio: float


def sequence_sums(values_NC: Tensor, mask_NC: Tensor, reduction: str) -> Tensor:
    """Sum over the tokens of each sequence, or their mean for ``sequence_mean``: [N]."""
    total_N = masked(values_NC, mask_NC).sum(dim=1)
    return total_N / mask_NC.sum(dim=1).clamp(min=1) if reduction == "sequence_mean" else total_N


def grpo_loss(policy_NCV: Tensor, rollouts: Rollouts, settings: GRPOSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped GRPO loss summed over sequences (the caller divides by their number), and statistics to sum likewise.

    Per token: -min(rho A, clip(rho) A) + kl_beta kl, with rho the ratio to the policy that the batch's first update
    started from (exactly 1 there), or to the one that drew stale rollouts. ``policy_NCV`` are log-probabilities at the
    completion's positions.
    """
    reduction, mask_NC = settings.loss_reduction, rollouts.mask_NC
    logprobs_NC = policy_NCV.gather(-1, rollouts.tokens_NC[..., None]).squeeze(-1)
    old_NC = logprobs_NC.detach() if rollouts.old_logprobs_NC is None else rollouts.old_logprobs_NC
    advantages_PG, scale_P = group_advantages(rollouts.rewards_PG, settings.advantage)
    group_size = advantages_PG.shape[1]
    scale_N = scale_P.repeat_interleave(group_size)
    penalty_N = torch.zeros_like(scale_N)
    kl_N = torch.zeros_like(scale_N)

    if rollouts.reference_NCV is not None:
        kl_NC = kl_to_reference(policy_NCV, rollouts.reference_NCV, rollouts.tokens_NC, mask_NC, settings.kl_estimator)
        kl_N = kl_NC.sum(dim=1).detach()
        if settings.kl_in == "loss":
            penalty_N = settings.kl_beta * sequence_sums(kl_NC, mask_NC, reduction)
        else:
            paid_PG = (kl_N if rollouts.old_kl_N is None else rollouts.old_kl_N).view(advantages_PG.shape)
            cost_PG = paid_PG - paid_PG.mean(dim=1, keepdim=True)
            advantages_PG = advantages_PG - settings.kl_beta * cost_PG / scale_P[:, None]
            if settings.kl_estimator == "exact":
                kept = 1 - 1 / group_size
                penalty_N = settings.kl_beta * kept * sequence_sums(kl_NC, mask_NC, reduction) / scale_N

    ratio_NC = torch.exp(masked(logprobs_NC - old_NC, mask_NC))
    advantages_N1 = advantages_PG.reshape(-1, 1)
    clipped_NC = ratio_NC.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio)
    free_NC, bound_NC = ratio_NC * advantages_N1, clipped_NC * advantages_N1
    surrogate_NC = torch.minimum(free_NC, bound_NC)
    loss = (penalty_N - sequence_sums(surrogate_NC, mask_NC, reduction)).sum()

    with torch.no_grad():
        entropy_NC = -(policy_NCV.exp() * policy_NCV).sum(dim=-1)
        statistics = {
            "entropy": sequence_sums(entropy_NC, mask_NC, "sequence_mean").sum(),
            # Where the minimum is the clipped branch, which has no gradient; a ratio outside that the minimum leaves
            # alone, or an advantage of zero, loses nothing.
            "clipped": sequence_sums((bound_NC < free_NC).float(), mask_NC, "sequence_mean").sum(),
        }
        if rollouts.reference_NCV is not None:
            statistics["kl"] = kl_N.sum()
    return loss, statistics
