"""The clipped GRPO loss, and its normalisation.

A token costs -min(rho A, clip(rho) A), plus kl_beta times its KL if the KL is in the loss. Both terms are reduced from
the tokens of a sequence to one number in the same way. The loss is the mean of these numbers over sequences:

    sequence_mean    mean over the tokens of a sequence, then over sequences (GRPO)
    token_sum        sum over the tokens of a sequence, divided by a constant, then the mean over sequences (Dr. GRPO).
                     The constant is ``reductions.TOKEN_SUM_DIVISOR``, 1 here

So in the loss kl_beta weighs a token's KL, in nats, against the advantage of that token, whatever the reduction. In the
reward it weighs a completion's KL against its reward. Two numbers of the KL are logged: its unweighted sum over a
completion (``Scores.kl_NC``), and its cost after weight and reduction (``Loss.penalty_N``).

TRL (read at 1.16.0) also adds beta times the KL of each token to that token's loss, before its ``loss_type`` reduces
both. Its ``grpo`` is ``sequence_mean``. Its ``dr_grpo`` is ``token_sum`` divided by the largest number of tokens of a
completion, a constant that both terms share. Neither changes the meaning of beta. Three things differ:

1. TRL's KL is k3, by default times the ratio. On policy this has in expectation the gradient of our ``exact``; without
   the factor it is our ``k3``.
2. TRL divides rewards by the sample standard deviation (divisor G - 1), ``group_std`` by the population's (divisor G).
   TRL's advantages are therefore smaller, and the same beta acts more strongly, by the factor sqrt(G / (G - 1)): 1.07
   at G = 8.
3. TRL logs the mean KL over tokens; ours is the sum over a completion.

Shape suffixes: _N sequences (prompts times group, a group's members side by side), _C tokens of a completion.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayexp.objectives.advantages import Advantages, Earnings
from rayexp.objectives.kl import OVER_VOCABULARY
from rayexp.objectives.reductions import REDUCTIONS, masked, sequence_sum

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GRPOSettings:
    """The settings of a GRPO stage that the loss reads, with the names of the stage's fields."""

    kl_beta: float
    kl_estimator: str
    kl_in: str
    advantage: str
    loss_reduction: str
    clip_ratio: float


@dataclass(frozen=True)
class Scores:
    """The numbers of a policy that the loss reads, one for each token of a completion."""

    logprob_NC: "Tensor"  # of the sampled token
    entropy_NC: "Tensor"  # of the distribution of the sampled token; carries no gradient
    kl_NC: "Tensor | None"  # to the reference, by the stage's estimator, 0 under the mask; None if kl_beta is 0


@dataclass(frozen=True)
class Loss:
    """The loss of each sequence, before the mean over sequences, and two numbers to log.

    clipped_NC: whether the clip cuts a token's gradient. penalty_N: cost of the KL to a sequence, kl_beta times its KL,
    without gradient; None if kl_beta is 0. A KL in the loss is reduced like the loss; a KL in the reward is summed.
    """

    loss_N: "Tensor"
    clipped_NC: "Tensor"
    penalty_N: "Tensor | None"

    def mean(self, sequences: int) -> "Tensor":
        """Return the contribution of these sequences to the mean over ``sequences`` of them."""
        return self.loss_N.sum() / sequences


def earnings_of(
    scores: Scores,
    mask_NC: "Tensor",
    rewards_PG: "Tensor",
    settings: GRPOSettings,
    old_kl_NC: "Tensor | None" = None,
) -> Earnings:
    """Return the rewards of completions, with their KL if that is in the reward. old_kl_NC: the KL before the first of
    several updates, which is then subtracted; None: the KL of ``scores``."""
    if scores.kl_NC is None or settings.kl_in == "loss":
        return Earnings(rewards_PG, mask_NC)
    kl_NC = scores.kl_NC.detach() if old_kl_NC is None else old_kl_NC
    return Earnings(rewards_PG, mask_NC, kl_NC, settings.kl_beta)


def grpo_loss(
    scores: Scores,
    mask_NC: "Tensor",
    advantages: Advantages,
    settings: GRPOSettings,
    old_logprob_NC: "Tensor | None" = None,
) -> Loss:
    """Return the loss of each sequence.

    Per token: -min(rho A, clip(rho) A) + kl_beta kl. rho is the ratio to the policy before the batch's first update
    (exactly 1 there), or to the policy that drew stale rollouts. old_logprob_NC: log-probabilities of that policy;
    None: those of ``scores``.
    """
    reduced = REDUCTIONS[settings.loss_reduction]
    added_N, penalty_N = mask_NC.new_zeros(len(mask_NC)), None
    if scores.kl_NC is not None and settings.kl_in == "loss":
        added_N = settings.kl_beta * reduced(scores.kl_NC, mask_NC)
        penalty_N = added_N.detach()
    elif scores.kl_NC is not None:
        penalty_N = settings.kl_beta * sequence_sum(scores.kl_NC, mask_NC).detach()
        if settings.kl_estimator in OVER_VOCABULARY:
            # As a number in the reward the KL lacks its own gradient at each prefix. Add it, scaled like the reward's.
            kl_N = reduced(scores.kl_NC, mask_NC)
            added_N = settings.kl_beta * advantages.kept * kl_N / advantages.scale_N

    old_NC = scores.logprob_NC.detach() if old_logprob_NC is None else old_logprob_NC
    ratio_NC = masked(scores.logprob_NC - old_NC, mask_NC).exp()
    free_NC = ratio_NC * advantages.advantage_NC
    bound_NC = ratio_NC.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio) * advantages.advantage_NC
    # The clip cuts a gradient where the minimum is the clipped branch. A token loses nothing if its ratio is out of
    # range but the minimum is the other branch, or if its advantage is zero.
    return Loss(added_N - reduced(free_NC.minimum(bound_NC), mask_NC), bound_NC < free_NC, penalty_N)
