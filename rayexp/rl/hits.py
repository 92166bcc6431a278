"""Counts of right completions, beside the number that the policy's own probabilities predict.

Of N completions of a prompt x, N Q(x) are right on average, because they are drawn from the policy whose Q is computed.
GRPO cannot learn if no completion is right and none was expected to be. If many more or fewer are right than expected,
sampler and learner do not have the same policy. With ``staleness=1`` completions are drawn before the last update, and
Q is computed after it, so the numbers differ by the effect of one update.

Shape suffixes: _P prompts, _G members of a group.
"""

from collections.abc import Mapping

import numpy as np

from rayexp.rl.prompts import PromptBatch

#: Names of the metrics, which count from the start of the stage.
DRAWN, RIGHT, EXPECTED = "rollout/drawn", "rollout/right", "rollout/expected_right"


class Hits:
    """Totals of a stage: drawn completions, right ones, and the expected number of right ones."""

    def __init__(self, before: Mapping[str, float]) -> None:
        """before: the last values of the stage's metrics, if it continues from a checkpoint."""
        self._drawn, self._right, self._expected = (before.get(name, 0.0) for name in (DRAWN, RIGHT, EXPECTED))
        self._mass: dict[int, float] = {}  # by number of the prompt

    def expect(self, batch: PromptBatch, mass_P: np.ndarray) -> None:
        """Store the mass of the right completion of each prompt, before completions are drawn for it."""
        self._mass = dict(zip(batch.numbers, mass_P.tolist(), strict=True))

    def count(self, batch: PromptBatch, right_PG: np.ndarray) -> None:
        """Count completions of prompts that were given to ``expect``, also of those that are drawn again."""
        self._drawn += right_PG.size
        self._right += float(right_PG.sum())
        self._expected += right_PG.shape[1] * sum(self._mass[number] for number in batch.numbers)

    def totals(self) -> dict[str, float]:
        """Return the totals, by the names of the metrics without their group."""
        values = {DRAWN: self._drawn, RIGHT: self._right, EXPECTED: self._expected}
        return {name.partition("/")[2]: value for name, value in values.items()}
