"""The interface of rewards: a number for one completion of a policy."""

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field

from rayexp.parts import Part
from rayexp.tasks.base import Solution, Task


class Reward(Part):
    """A reward for completions. Subclasses add ``kind`` (a literal) and their settings.

    Equal completions of a prompt have the same reward, so each distinct one is judged once. weight: factor in the sum
    of all rewards of a stage.
    """

    weight: float = Field(default=1.0)

    @abstractmethod
    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        """Return the reward of a completion, before ``weight``: any finite number.

        ``completion`` is token ids, with ``<eos>`` if the policy wrote it. ``solution`` is that of the prompt.
        """

    def require_task(self, task: Task) -> None:
        """Raise ValueError if the reward makes no sense for a task. Every stage calls it when it is created."""


class DrawReward(Reward):
    """A reward for draws: equal completions of a prompt may have different rewards.

    Subclasses implement ``of_draw``, and not ``__call__``.
    """

    @abstractmethod
    def of_draw(self, task: Task, solution: Solution, completion: Sequence[int], seed: int) -> float:
        """Return the reward of one draw, before ``weight``: any finite number.

        ``seed`` is the seed of the draw. It follows from the run, the step, the prompt's place in the step and the
        member of the group. No two draws of a stage share one.
        """

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        raise TypeError(f"the reward {self.kind} judges a draw, whose seed has to be given: call of_draw")
