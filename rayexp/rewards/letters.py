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
        return right_letters(solution, completion) / max(len(completion), len(solution.completion))


def right_letters(solution: Solution, completion: Sequence[int]) -> int:
    """Return the number of places at which a completion and the gold one agree, ``<eos>`` included."""
    return sum(a == b for a, b in zip(completion, solution.completion, strict=False))
