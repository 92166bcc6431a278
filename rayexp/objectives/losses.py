"""The clipped GRPO loss, and its normalisation.

A token costs -min(rho A, clip(rho) A), plus kl_beta times its KL where the KL is in the loss. The tokens of a sequence
are reduced to one number, alike for both terms, and the loss is the mean of that over sequences:

    sequence_mean    mean over the tokens of a sequence, then over sequences (GRPO)
    token_sum        sum over the tokens of a sequence, divided by a constant, then the mean over sequences (Dr. GRPO).
                     The constant is ``reductions.TOKEN_SUM_DIVISOR``, 1 here

So in the loss kl_beta is the price of a token's nat beside the advantage of that token, whatever the reduction; in the
reward it is the price of a completion's nat beside its reward. What is logged of the KL are two numbers: its sum over a
completion (``Scores.kl_NC``, before any weight), and what it costs as it is charged (``Loss.penalty_N``).

TRL (read at 1.16.0) adds beta times the KL of each token to that token's loss as well, before its ``loss_type``
reduces both. Its ``grpo`` is ``sequence_mean``; its ``dr_grpo`` is ``token_sum`` over the most tokens that a completion
may have, a constant that both terms share. In neither does that change what a beta means. Three things do differ. TRL's
KL is k3, by default times the ratio, which on policy has in expectation the gradient of our ``exact``; without that
factor it is our ``k3``. TRL divides rewards by the sample's standard deviation (G - 1 below) where ``group_std`` has
the population's (G), so that its advantages are smaller, and the same beta holds more, by the factor sqrt(G / (G - 1)):
1.07 at G = 8. And the KL that TRL logs is the mean over tokens, where ours is the sum over a completion's.

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


@dataclass(frozen=True)
class Loss:
    """The loss of sequences, before the mean over them, and what is logged of it.

    clipped_NC: the tokens whose gradient the clip cuts. penalty_N: what the KL costs a sequence, kl_beta times its KL,
    reduced as the loss is where the KL is in the loss, summed where it is subtracted from the reward; None where
    kl_beta is 0; carries no gradient.
    """

    loss_N: "Tensor"
    clipped_NC: "Tensor"
    penalty_N: "Tensor | None"

    def mean(self, sequences: int) -> "Tensor":
        """Return the part that these sequences have in the mean over ``sequences`` of them."""
        return self.loss_N.sum() / sequences


def earnings_of(
    scores: Scores,
    mask_NC: "Tensor",
    rewards_PG: "Tensor",
    settings: GRPOSettings,
    old_kl_NC: "Tensor | None" = None,
) -> Earnings:
    """Return what completions earn. old_kl_NC: the KL before the first of several updates, which a KL in the reward
    subtracts; None: that of ``scores``."""
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

    Per token: -min(rho A, clip(rho) A) + kl_beta kl, with rho the ratio to the policy that the batch's first update
    started from (exactly 1 there), or to the one that drew stale rollouts. old_logprob_NC: of that policy; None: those
    of ``scores``.
    """
    reduced = REDUCTIONS[settings.loss_reduction]
    added_N, penalty_N = mask_NC.new_zeros(len(mask_NC)), None
    if scores.kl_NC is not None and settings.kl_in == "loss":
        added_N = settings.kl_beta * reduced(scores.kl_NC, mask_NC)
        penalty_N = added_N.detach()
    elif scores.kl_NC is not None:
        penalty_N = settings.kl_beta * sequence_sum(scores.kl_NC, mask_NC).detach()
        if settings.kl_estimator in OVER_VOCABULARY:
            # A number in the reward lacks the KL's own gradient at each prefix: it is added, as weak as the reward's.
            kl_N = reduced(scores.kl_NC, mask_NC)
            added_N = settings.kl_beta * advantages.kept * kl_N / advantages.scale_N

    old_NC = scores.logprob_NC.detach() if old_logprob_NC is None else old_logprob_NC
    ratio_NC = masked(scores.logprob_NC - old_NC, mask_NC).exp()
    free_NC = ratio_NC * advantages.advantage_NC
    bound_NC = ratio_NC.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio) * advantages.advantage_NC
    # The minimum is the clipped branch there, which has no gradient. A ratio out of range that the minimum leaves
    # alone, or an advantage of zero, loses nothing.
    return Loss(added_N - reduced(free_NC.minimum(bound_NC), mask_NC), bound_NC < free_NC, penalty_N)
