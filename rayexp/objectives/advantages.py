"""Advantages: how much more each token's completion earned than was to be expected.

What was to be expected is one of two baselines:

    the mean of the group    one number for a whole completion. ``OF_GROUP`` has functions from centred rewards_PG to
                             the scale_P that the difference is divided by
    the value of a critic    one number for each prefix. ``OF_VALUES`` has functions from returns_NC, which are what is
                             earned from a token on, and values_NC, which are what a critic expected before that token

A KL in the reward is part of what is earned. Against the group's mean it is centred and divided as rewards are. Against
a critic each token answers for its own KL and for that of later tokens, because it has no part in that of earlier ones.

Shape suffixes: _N sequences (prompts times group, a group's members side by side), _C tokens of a completion, _P
prompts, _G members of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayexp.objectives.reductions import masked

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Earnings:
    """Rewards of completions, less ``kl_beta`` times the KL of each token where the KL is in the reward.

    kl_NC: that KL, as a number without gradient, 0 under the mask. None where the KL is not in the reward.
    """

    rewards_PG: "Tensor"
    mask_NC: "Tensor"
    kl_NC: "Tensor | None" = None
    kl_beta: float = 0.0

    def returns_NC(self) -> "Tensor":
        """Return what is earned from each token on, without discount."""
        rewards_NC = self.rewards_PG.reshape(-1, 1).expand(self.mask_NC.shape)
        if self.kl_NC is None:
            return rewards_NC
        return rewards_NC - self.kl_beta * self.kl_NC.flip(1).cumsum(dim=1).flip(1)


@dataclass(frozen=True)
class Advantages:
    """Advantages of tokens, and what becomes of a gradient through the reward on its way to the loss.

    kept: share of it, in expectation, that the baseline leaves. scale_N: what it is divided by.
    """

    advantage_NC: "Tensor"
    kept: float
    scale_N: "Tensor"


def group_std(centred_PG: "Tensor") -> "Tensor":
    """Return the population's standard deviation over the group (DeepSeekMath, eq. 4), or 1 where that is 0."""
    std_P = centred_PG.square().mean(dim=1).sqrt()
    return std_P.where(std_P > 0, 1.0)


def mean_only(centred_PG: "Tensor") -> "Tensor":
    """Return 1: rewards are centred and not scaled (Dr. GRPO)."""
    return centred_PG.new_ones(len(centred_PG))


def leave_one_out(centred_PG: "Tensor") -> "Tensor":
    """Return 1 - 1/G: the baseline of each member is then the mean of the others (RLOO), because a reward less that
    mean is (r - mean over the group) / (1 - 1/G)."""
    return mean_only(centred_PG) * (1 - 1 / centred_PG.shape[1])


OF_GROUP: dict[str, Callable[["Tensor"], "Tensor"]] = {
    "group_std": group_std,
    "mean_only": mean_only,
    "leave_one_out": leave_one_out,
}


def critic(returns_NC: "Tensor", values_NC: "Tensor") -> "Tensor":
    """Return the return less the value (PPO's generalised advantages at gamma = lambda = 1), not scaled."""
    return returns_NC - values_NC


OF_VALUES: dict[str, Callable[["Tensor", "Tensor"], "Tensor"]] = {
    "critic": critic,
}
ADVANTAGES = OF_GROUP | OF_VALUES


def advantages_of(kind: str, earnings: Earnings, values_NC: "Tensor | None" = None) -> Advantages:
    """Return the advantages of a kind. values_NC: of a critic; a kind in ``OF_VALUES`` needs them, others ignore them.

    Advantages of a critic are 0 under the mask.
    """
    if kind in OF_GROUP:
        return _against_group(kind, earnings)
    if values_NC is None:
        raise ValueError(f"advantage={kind!r} needs values_NC, the values of a critic")
    advantage_NC = masked(OF_VALUES[kind](earnings.returns_NC(), values_NC), earnings.mask_NC)
    # A baseline that doesn't depend on the token leaves the whole gradient.
    return Advantages(advantage_NC, 1.0, advantage_NC.new_ones(len(advantage_NC)))


def _against_group(kind: str, earnings: Earnings) -> Advantages:
    rewards_PG, group_size = earnings.rewards_PG, earnings.rewards_PG.shape[1]
    advantages_PG, scale_P = group_advantages(rewards_PG, kind)
    if earnings.kl_NC is not None:
        paid_PG = earnings.kl_NC.sum(dim=1).view(rewards_PG.shape)
        cost_PG = paid_PG - paid_PG.mean(dim=1, keepdim=True)
        advantages_PG = advantages_PG - earnings.kl_beta * cost_PG / scale_P[:, None]
    advantage_NC = advantages_PG.reshape(-1, 1).expand(earnings.mask_NC.shape)
    # Each completion is part of its own baseline.
    return Advantages(advantage_NC, 1 - 1 / group_size, scale_P.repeat_interleave(group_size))


def group_advantages(rewards_PG: "Tensor", kind: str) -> tuple["Tensor", "Tensor"]:
    """Return advantages_PG = (r - mean over the group) / scale, and scale_P.

    A group whose rewards are all equal has no preference: its advantages are 0.
    """
    differ_P1 = rewards_PG.amax(dim=1, keepdim=True) > rewards_PG.amin(dim=1, keepdim=True)
    # Rounding can make the mean of equal numbers another number: where none differs, 0 is set and not computed.
    centred_PG = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)).where(differ_P1, 0.0)
    scale_P = OF_GROUP[kind](centred_PG)
    return centred_PG / scale_P[:, None], scale_P
