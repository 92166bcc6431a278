"""A reward for partial solutions: information about how far a completion went right."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Steps(Reward):
    """1 for each step of the solution that a completion has right before its first wrong one.

    A count and no share, so that a step is worth as much against a KL however many there are. A task whose completions
    show one step only is refused: there the reward is ``answer`` under another name.
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
    """Return how many steps a completion of a cell is judged by."""
    _, solution = task.example("grpo", 0, cell)
    return task.judge(solution, solution.completion).steps
