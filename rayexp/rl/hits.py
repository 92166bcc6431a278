"""Right completions, beside how many the policy's own probabilities let expect.

Of N completions of a prompt x, N Q(x) are right on average, because they are drawn from the policy whose Q is computed.
None found with none to be expected is what GRPO can't learn from; many more or fewer would say that sampler and learner
are two policies.

Shape suffixes: _P prompts, _G members of a group.
"""

from collections.abc import Mapping

import numpy as np

from rayexp.rl.prompts import PromptBatch

#: Names of what is logged, all from the stage's start on.
DRAWN, RIGHT, EXPECTED = "rollout/drawn", "rollout/right", "rollout/expected_right"


class Hits:
    """The counts of a stage."""

    def __init__(self, before: Mapping[str, float]) -> None:
        """before: last values of the stage's metrics, where it goes on from a checkpoint."""
        self._drawn, self._right, self._expected = (before.get(name, 0.0) for name in (DRAWN, RIGHT, EXPECTED))
        self._mass: dict[int, float] = {}  # by number of the prompt

    def expect(self, batch: PromptBatch, mass_P: np.ndarray) -> None:
        """Take in the mass of the right completion of each prompt that is about to be drawn for."""
        self._mass = dict(zip(batch.numbers, mass_P.tolist(), strict=True))

    def count(self, batch: PromptBatch, right_PG: np.ndarray) -> None:
        """Count completions of prompts that were announced, some of them perhaps once more."""
        self._drawn += right_PG.size
        self._right += float(right_PG.sum())
        self._expected += right_PG.shape[1] * sum(self._mass[number] for number in batch.numbers)

    def totals(self) -> dict[str, float]:
        """Return what there is to log, by the names of the metrics without their group."""
        values = {DRAWN: self._drawn, RIGHT: self._right, EXPECTED: self._expected}
        return {name.partition("/")[2]: value for name, value in values.items()}
