"""The dense reward for letters on a scale that does not depend on the length of the answer."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.rewards.letters import right_letters
from rayexp.tasks.base import Solution, Task


class LettersSum(Reward):
    """1 for each place at which a completion and the gold one agree, ``<eos>`` included.

    Against a KL of weight beta, a share of 1/L for each of L letters holds every letter back as a beta L times as large
    would; here a letter is worth as much as a whole answer is to ``answer``. A completion that writes on behind the
    gold one's end misses its ``<eos>``, and so the whole sum.
    """

    kind: Literal["letters_sum"] = "letters_sum"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return float(right_letters(solution, completion))
