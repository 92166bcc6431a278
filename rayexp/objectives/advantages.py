"""Advantages: how much better each member of a group did than its group.

An advantage is a function from centred rewards_PG to the scale_P that they are divided by. A KL in the reward is
centred and divided by the same scale.

Shape suffixes: _P prompts, _G members of a group.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


ADVANTAGES: dict[str, Callable[["Tensor"], "Tensor"]] = {
    "group_std": group_std,
    "mean_only": mean_only,
    "leave_one_out": leave_one_out,
}


def group_advantages(rewards_PG: "Tensor", kind: str) -> tuple["Tensor", "Tensor"]:
    """Return advantages_PG = (r - mean over the group) / scale, and scale_P.

    A group whose rewards are all equal has no preference: its advantages are 0.
    """
    differ_P1 = rewards_PG.amax(dim=1, keepdim=True) > rewards_PG.amin(dim=1, keepdim=True)
    # Rounding can make the mean of equal numbers another number: where none differs, 0 is set and not computed.
    centred_PG = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)).where(differ_P1, 0.0)
    scale_P = ADVANTAGES[kind](centred_PG)
    return centred_PG / scale_P[:, None], scale_P
