"""A dense reward: information about single tokens, which the answer alone does not carry."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Letters(Reward):
    """The share of places at which a completion and the gold one agree, of the places of the longer of the two.

    Of the longer one, because a completion that never ends would lose nothing otherwise.
    """

    kind: Literal["letters"] = "letters"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        agreeing = sum(a == b for a, b in zip(completion, solution.completion, strict=False))
        return agreeing / max(len(completion), len(solution.completion))
