"""Advantages: the reward of each token's completion beyond the expected one.

The expected reward is one of two baselines:

    the mean of the group    one number for a whole completion. ``OF_GROUP`` has functions from centred rewards_PG to
                             scale_P, by which the difference is divided
    the value of a critic    one number for each prefix. ``OF_VALUES`` has functions of returns_NC, the reward from each
                             token on, and values_NC, the critic's estimates of it before that token

A KL in the reward is part of the reward. With the group's mean as baseline it is centred and divided as rewards are.
With a critic each token is charged for its own KL and that of later tokens, because it can't influence earlier ones.

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
    """Rewards of completions, less ``kl_beta`` times the KL of each token if the KL is in the reward.

    kl_NC: that KL, without gradient, 0 under the mask. None if the KL is not in the reward.
    """

    rewards_PG: "Tensor"
    mask_NC: "Tensor"
    kl_NC: "Tensor | None" = None
    kl_beta: float = 0.0

    def returns_NC(self) -> "Tensor":
        """Return the undiscounted return from each token on: [N, C]."""
        rewards_NC = self.rewards_PG.reshape(-1, 1).expand(self.mask_NC.shape)
        if self.kl_NC is None:
            return rewards_NC
        return rewards_NC - self.kl_beta * self.kl_NC.flip(1).cumsum(dim=1).flip(1)


@dataclass(frozen=True)
class Advantages:
    """Advantages of tokens, and the factors that they apply to a gradient through the reward.

    kept: share of that gradient, in expectation, that the baseline leaves. scale_N: divisor of that gradient.
    """

    advantage_NC: "Tensor"
    kept: float
    scale_N: "Tensor"


def group_std(centred_PG: "Tensor") -> "Tensor":
    """Return the population standard deviation over the group (DeepSeekMath, eq. 4), or 1 if that is 0."""
    std_P = centred_PG.square().mean(dim=1).sqrt()
    return std_P.where(std_P > 0, 1.0)


def mean_only(centred_PG: "Tensor") -> "Tensor":
    """Return 1: rewards are centred and not scaled (Dr. GRPO)."""
    return centred_PG.new_ones(len(centred_PG))


def leave_one_out(centred_PG: "Tensor") -> "Tensor":
    """Return 1 - 1/G. With this scale the baseline of each member is the mean of the others (RLOO), because a reward
    less that mean is (r - mean over the group) / (1 - 1/G)."""
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
    """Return the advantages of a kind. values_NC: a critic's values, which only kinds in ``OF_VALUES`` use.

    Advantages with a critic are 0 under the mask. Raises ValueError if a kind in ``OF_VALUES`` gets no values.
    """
    if kind in OF_GROUP:
        return _against_group(kind, earnings)
    if values_NC is None:
        raise ValueError(f"advantage={kind!r} needs values_NC, the values of a critic")
    advantage_NC = masked(OF_VALUES[kind](earnings.returns_NC(), values_NC), earnings.mask_NC)
    # A baseline that doesn't depend on the token keeps the whole gradient.
    return Advantages(advantage_NC, 1.0, advantage_NC.new_ones(len(advantage_NC)))


def _against_group(kind: str, earnings: Earnings) -> Advantages:
    rewards_PG, group_size = earnings.rewards_PG, earnings.rewards_PG.shape[1]
    advantages_PG, scale_P = group_advantages(rewards_PG, kind)
    if earnings.kl_NC is not None:
        paid_PG = earnings.kl_NC.sum(dim=1).view(rewards_PG.shape)
        cost_PG = paid_PG - paid_PG.mean(dim=1, keepdim=True)
        advantages_PG = advantages_PG - earnings.kl_beta * cost_PG / scale_P[:, None]
    advantage_NC = advantages_PG.reshape(-1, 1).expand(earnings.mask_NC.shape)
    # Each completion is part of its own baseline, which takes 1/G of the gradient.
    return Advantages(advantage_NC, 1 - 1 / group_size, scale_P.repeat_interleave(group_size))


def group_advantages(rewards_PG: "Tensor", kind: str) -> tuple["Tensor", "Tensor"]:
    """Return advantages_PG = (r - mean over the group) / scale, and scale_P.

    A group with equal rewards has advantages of 0.
    """
    differ_P1 = rewards_PG.amax(dim=1, keepdim=True) > rewards_PG.amin(dim=1, keepdim=True)
    # Set 0 in groups of equal rewards instead of computing it, because a rounded mean can differ from equal numbers.
    centred_PG = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)).where(differ_P1, 0.0)
    scale_P = OF_GROUP[kind](centred_PG)
    return centred_PG / scale_P[:, None], scale_P
