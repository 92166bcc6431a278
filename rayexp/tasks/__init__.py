"""Tasks, by kind. Every ``Task`` with a ``kind`` in a module of this package is found; there is no list of them."""

from typing import TYPE_CHECKING, TypeAlias

from rayexp.config import kinds_in
from rayexp.parts import part_of
from rayexp.tasks.base import ROLES, FixedLengthTask, Solution, Task, TokenBatch, Verdict, Vocabulary

TASKS: dict[str, type[Task]] = kinds_in(__path__, __name__, Task)
if TYPE_CHECKING:
    AnyTask: TypeAlias = Task
else:
    AnyTask = part_of(Task, TASKS)

__all__ = ["ROLES", "TASKS", "AnyTask", "FixedLengthTask", "Solution", "Task", "TokenBatch", "Verdict", "Vocabulary"]
