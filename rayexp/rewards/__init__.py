"""Rewards, by kind. Every ``Reward`` with a ``kind`` in a module of this package is found; there is no list of them."""

from typing import TYPE_CHECKING, TypeAlias

from rayexp.config import kinds_in
from rayexp.parts import part_of
from rayexp.rewards.base import DrawReward, Reward

REWARDS: dict[str, type[Reward]] = kinds_in(__path__, __name__, Reward)
if TYPE_CHECKING:
    AnyReward: TypeAlias = Reward
else:
    AnyReward = part_of(Reward, REWARDS)

__all__ = ["REWARDS", "AnyReward", "DrawReward", "Reward"]
