"""The verifiable reward of GRPO."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Answer(Reward):
    """1 for a completion that ends in the right answer, else 0."""

    kind: Literal["answer"] = "answer"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return float(task.judge(solution, completion).answer)
