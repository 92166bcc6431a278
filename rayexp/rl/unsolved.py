"""Prompts of a stage that takes only those without a right completion so far."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from rayexp.rewards.answer import Answer
from rayexp.rl.prompts import PromptBatch, Prompts, group_rewards
from rayexp.sampling.base import Completions
from rayexp.stages import RolloutStage

#: Name of its file in a checkpoint.
SOLVED = "solved.npz"


class UnsolvedPrompts(Prompts):
    """The prompts that no completion of the stage has answered so far, in the order of all prompts.

    One right answer solves a prompt, whatever the stage's rewards are. If fewer prompts are left than a step takes,
    each comes up again in the same step, with other seeds, so that all steps are equally large.
    """

    def __init__(self, stage: RolloutStage, before: Mapping[str, bytes]) -> None:
        """before: the files of the checkpoint to continue from; none at the start."""
        super().__init__(stage)
        self._solved = np.zeros(stage.prompt_count, dtype=bool)  # by number of the prompt
        self._place = 0  # in the endless sequence of epochs, behind the last prompt that was taken
        if SOLVED in before:
            with np.load(io.BytesIO(before[SOLVED]), allow_pickle=False) as arrays:
                self._solved, self._place = arrays["solved"], int(arrays["place"])

    @property
    def exhausted(self) -> bool:
        return bool(self._solved.all())

    def at(self, step: int) -> PromptBatch:
        """Return the prompts of a step, which has to be the one after the last that was recorded."""
        return self.batch(step, self._next()[0])

    def record(self, batch: PromptBatch, completions: Completions) -> dict[str, float]:
        """Note which prompts of the step were solved in it. Return how many are left."""
        self._place = self._next()[1]
        right_PG = group_rewards(self.stage.root.task, (Answer(),), batch, completions)
        self._solved[np.array(batch.numbers)[right_PG.any(axis=1)]] = True
        return {"unsolved_prompts": float((~self._solved).sum())}

    def files(self) -> dict[str, bytes]:
        file = io.BytesIO()
        np.savez(file, solved=self._solved, place=np.array(self._place))
        return {SOLVED: file.getvalue()}

    def _next(self) -> tuple[Sequence[int], int]:
        """Return the numbers of the next step's prompts, and the place behind the last of them."""
        numbers: list[int] = []
        place, total = self._place, self.stage.prompt_count
        while missing := self.stage.prompts_per_step - len(numbers):
            ahead = self.order(place, place + total)
            left = np.flatnonzero(~self._solved[ahead])[:missing]
            numbers += ahead[left].tolist()
            place += int(left[-1]) + 1 if len(left) == missing else total
        return numbers, place
