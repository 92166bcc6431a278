"""A null control for every reward: a reward that does not depend on the completion."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from rayexp import rng
from rayexp.rewards.base import DrawReward
from rayexp.tasks.base import Solution, Task


class Random(DrawReward):
    """1 with probability ``chance``, else 0, drawn for each draw from its seed alone.

    Equal completions get independent rewards. A hash of the completion would always prefer the same completions, and so
    would teach something.
    """

    kind: Literal["random"] = "random"
    chance: float = Field(default=0.5, gt=0, lt=1)

    def of_draw(self, task: Task, solution: Solution, completion: Sequence[int], seed: int) -> float:
        return float(rng.uniform(rng.stream_key("random reward"), np.array([seed]))[0] < self.chance)
