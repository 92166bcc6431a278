"""A null control for dense rewards: potential-based shaping, which pays for progress and changes nothing in GRPO.

Shaping pays every token the potential after it less the potential before it (Ng, Harada and Russell, 1999). All that
sequence-level GRPO sees of this is the sum, which telescopes to the potential at the end less that at the start: a
number that depends on the prompt alone, where a finished completion has the potential 0. Centring removes it.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

from rayexp.rewards.base import Reward
from rayexp.tasks.base import Solution, Task


class Shaped(Reward):
    """The sum of all that shaping by right letters pays for a completion.

    The potential of an unfinished completion is the number of its letters that are right. It is 0 for a prompt with
    nothing written, so the sum is 0, and not only the same number for all of a group: adding it to another reward
    changes no bit of an update, whatever the weights and the size of the group, where a centred float would be rounded.
    """

    kind: Literal["shaped"] = "shaped"

    def __call__(self, task: Task, solution: Solution, completion: Sequence[int]) -> float:
        return float(sum(shaping(solution, completion)))


def shaping(solution: Solution, completion: Sequence[int]) -> list[int]:
    """Return what each token of a finished completion is paid, whether it ended itself or was cut off."""
    gold = [*solution.completion, *[None] * len(completion)]
    potentials = list(accumulate((a == b for a, b in zip(completion, gold, strict=False)), initial=0))
    potentials[-1] = 0
    return [after - before for before, after in pairwise(potentials)]
