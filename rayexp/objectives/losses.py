"""The clipped GRPO loss.

Shape suffixes: _N sequences (prompts times group, a group's members side by side), _C tokens of a completion, _P
prompts, _G members of a group.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayexp.objectives.advantages import group_advantages
from rayexp.objectives.kl import OVER_VOCABULARY
from rayexp.objectives.reductions import REDUCTIONS, masked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GRPOSettings:
    """The part of a GRPO stage that the loss reads, under the names of its fields."""

    kl_beta: float
    kl_estimator: str
    kl_in: str
    advantage: str
    loss_reduction: str
    clip_ratio: float


@dataclass(frozen=True)
class Scores:
    """The numbers that a loss reads of a policy, one for each token of a completion."""

    logprob_NC: "Tensor"  # of the sampled token
    entropy_NC: "Tensor"  # of the distribution that the token was sampled from; carries no gradient
    kl_NC: "Tensor | None"  # to the reference, by the stage's estimator, 0 under the mask; None where kl_beta is 0


def grpo_loss(
    scores: Scores,
    mask_NC: "Tensor",
    rewards_PG: "Tensor",
    settings: GRPOSettings,
    old_logprob_NC: "Tensor | None" = None,
    old_kl_N: "Tensor | None" = None,
) -> tuple["Tensor", "Tensor"]:
    """Return the loss summed over sequences (the caller divides by their number), and clipped_NC: the tokens whose
    gradient the clip cuts.

    Per token: -min(rho A, clip(rho) A) + kl_beta kl, with rho the ratio to the policy that the batch's first update
    started from (exactly 1 there), or to the one that drew stale rollouts. old_logprob_NC: of that policy. old_kl_N:
    the KL of each sequence before the first update, which a KL in the reward subtracts. None: those of ``scores``.
    """
    reduced, group_size = REDUCTIONS[settings.loss_reduction], rewards_PG.shape[1]
    advantages_PG, scale_P = group_advantages(rewards_PG, settings.advantage)
    penalty_N = rewards_PG.new_zeros(rewards_PG.numel())
    if scores.kl_NC is not None and settings.kl_in == "loss":
        penalty_N = settings.kl_beta * reduced(scores.kl_NC, mask_NC)
    elif scores.kl_NC is not None:
        paid_N = scores.kl_NC.sum(dim=1).detach() if old_kl_N is None else old_kl_N
        paid_PG = paid_N.view(rewards_PG.shape)
        cost_PG = paid_PG - paid_PG.mean(dim=1, keepdim=True)
        advantages_PG = advantages_PG - settings.kl_beta * cost_PG / scale_P[:, None]
        if settings.kl_estimator in OVER_VOCABULARY:
            kept, scale_N = 1 - 1 / group_size, scale_P.repeat_interleave(group_size)
            penalty_N = settings.kl_beta * kept * reduced(scores.kl_NC, mask_NC) / scale_N

    old_NC = scores.logprob_NC.detach() if old_logprob_NC is None else old_logprob_NC
    ratio_NC = masked(scores.logprob_NC - old_NC, mask_NC).exp()
    advantages_N1 = advantages_PG.reshape(-1, 1)
    free_NC = ratio_NC * advantages_N1
    bound_NC = ratio_NC.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio) * advantages_N1
    loss = (penalty_N - reduced(free_NC.minimum(bound_NC), mask_NC)).sum()
    # The minimum is the clipped branch there, which has no gradient. A ratio out of range that the minimum leaves
    # alone, or an advantage of zero, loses nothing.
    return loss, bound_NC < free_NC
