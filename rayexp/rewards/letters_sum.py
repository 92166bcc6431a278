"""The dense reward for letters on a scale that does not depend on the length of the answer."""

from collections.abc import Sequence
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.rewards.letters import right_letters
from rayexp.tasks.base import Solution, Task


class LettersSum(Reward):
    """1 for each place at which a completion and the gold one agree, ``<eos>`` included.

    ``letters`` gives 1/L for each of L letters, which makes a KL of weight beta act on each letter like one of weight
    beta L. Here each letter is worth as much as a whole answer is to ``answer``. A completion that is longer than the
    gold one has a wrong token in place of ``<eos>``, so it misses the full sum.
    """

    kind: Literal["letters_sum"] = "letters_sum"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return float(right_letters(solution, completion))
