"""A reward for partial solutions, by the number of right steps."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Steps(Reward):
    """1 for each right step of a completion before its first wrong one.

    It is a count and not a share, so the worth of a step against a KL does not depend on the number of steps. A task
    whose completions show only one step is refused, because there the reward would equal ``answer``.
    """

    kind: Literal["steps"] = "steps"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return float(task.judge(solution, completion).steps_right)

    def require_task(self, task: Task) -> None:
        if max(_steps(task, cell) for _, cell in task.roles()) < 2:
            raise ValueError(
                f"the reward steps needs a task that writes its steps, and {task.label} writes only one; use strings "
                "with completion_format='trace', or the reward answer"
            )


def _steps(task: Task, cell: str) -> int:
    """Return the number of steps by which completions of a cell are judged."""
    _, solution = task.example("grpo", 0, cell)
    return task.judge(solution, solution.completion).steps
