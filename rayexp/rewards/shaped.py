"""A null control for dense rewards: potential-based shaping, which rewards progress and changes nothing in GRPO.

Shaping gives every token the potential after it less the potential before it (Ng, Harada and Russell, 1999).
Sequence-level GRPO uses only the sum, which telescopes to the potential at the end less that at the start. A finished
completion has the potential 0, so the sum depends on the prompt alone, and centring removes it.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Shaped(Reward):
    """The sum of the shaping rewards of a completion's tokens, by right letters.

    The potential of an unfinished completion is its number of right letters. It is 0 for a prompt alone, so the sum is
    0, and not merely equal for all members of a group. Adding it to another reward therefore changes no bit of an
    update, whatever the weights and the group size. Centring another number would leave rounding errors.
    """

    kind: Literal["shaped"] = "shaped"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return float(sum(shaping(solution, completion)))


def shaping(solution: Solution, completion: Sequence[int]) -> list[int]:
    """Return the reward of each token of a finished completion, whether it ended with ``<eos>`` or was cut off."""
    gold = [*solution.completion, *[None] * len(completion)]
    potentials = list(accumulate((a == b for a, b in zip(completion, gold, strict=False)), initial=0))
    potentials[-1] = 0
    return [after - before for before, after in pairwise(potentials)]
