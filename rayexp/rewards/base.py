"""The seam for rewards: what a policy is paid for one completion."""

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field

from rayexp.parts import Part
from rayexp.tasks.base import Solution, Task


class Reward(Part):
    """A payment for completions. Subclasses add ``kind`` (a literal) and their settings.

    weight: factor in the sum of all rewards of a stage.
    """

    weight: float = Field(default=1.0)

    @abstractmethod
    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        """Return what a completion earns, before ``weight``: any finite number.

        ``completion`` is token ids, with its ``<eos>`` where it wrote one; ``solution`` is that of its prompt.
        """
