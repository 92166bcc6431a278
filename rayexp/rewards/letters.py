"""A dense reward, which carries information about single tokens. The reward for the answer does not."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Letters(Reward):
    """The number of places at which a completion and the gold one agree, divided by the length of the longer one.

    If it were divided by the gold one's length, a completion that never ends would lose nothing.
    """

    kind: Literal["letters"] = "letters"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return right_letters(solution, completion) / max(len(completion), len(solution.completion))


def right_letters(solution: Solution, completion: Sequence[int]) -> int:
    """Return the number of places at which a completion and the gold one agree, ``<eos>`` included."""
    return sum(a == b for a, b in zip(completion, solution.completion, strict=False))
