"""The seam for rewards: what a policy is paid for one completion."""

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field

from rayexp.parts import Part
from rayexp.tasks.base import Solution, Task


class Reward(Part):
    """A payment for completions. Subclasses add ``kind`` (a literal) and their settings.

    Equal completions of a prompt earn the same, so each is judged once, however often it was drawn. weight: factor in
    the sum of all rewards of a stage.
    """

    weight: float = Field(default=1.0)

    @abstractmethod
    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        """Return what a completion earns, before ``weight``: any finite number.

        ``completion`` is token ids, with its ``<eos>`` where it wrote one; ``solution`` is that of its prompt.
        """

    def require_task(self, task: Task) -> None:
        """Raise ValueError if the reward has no meaning of its own for a task. A stage calls it when it is made."""


class DrawReward(Reward):
    """A payment for draws: equal completions of a prompt may earn different amounts.

    Subclasses implement ``of_draw``, and never the call.
    """

    @abstractmethod
    def of_draw(self, task: Task, solution: Solution, completion: Sequence[int], seed: int) -> float:
        """Return what one draw earns, before ``weight``: any finite number.

        ``seed`` is what the completion was drawn with. It follows from the run, the step, the prompt's place in the
        step and the member of the group, and no two draws of a stage share one.
        """

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        raise TypeError(f"the reward {self.kind} pays for a draw, whose seed has to be given: call of_draw")
