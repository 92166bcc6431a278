"""Prompts of a stage, in an order that is a function of (seed, step) alone, and rewards for their completions.

Shape suffixes: _P prompts, _G members of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rayexp import rng
from rayexp.rewards import Reward
from rayexp.rewards.payment import group_payments
from rayexp.sampling.base import Completions, prompt_seed
from rayexp.stages import RolloutStage
from rayexp.tasks import Task


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one step.

    numbers: index of each among the stage's prompts. max_tokens: most tokens that are drawn. hints: first tokens of the
    gold completions, which are given with the prompts; by default none. gold: the rest of the gold completions, where
    they are known.
    """

    numbers: list[int]
    prompts: list[list[int]]
    seeds: list[int]
    max_tokens: list[int]
    hints: list[list[int]] = field(default_factory=list)
    gold: list[list[int]] = field(default_factory=list)

    @property
    def contexts(self) -> list[list[int]]:
        """Each prompt with its hint, which the policy continues."""
        if not self.hints:
            return self.prompts
        return [prompt + hint for prompt, hint in zip(self.prompts, self.hints, strict=True)]

    @property
    def gold_completions(self) -> list[list[int]]:
        """The gold completion of each prompt, its hint included; empty if it is not known."""
        nothing: list[list[int]] = [[] for _ in self.prompts]
        return [hint + gold for hint, gold in zip(self.hints or nothing, self.gold or nothing, strict=True)]

    def request(self, group_size: int) -> tuple[list[list[int]], list[int], int, list[int]]:
        """Return the arguments of ``Sampler.generate``."""
        return self.contexts, self.seeds, group_size, self.max_tokens

    def again(self, places: Sequence[int], attempt: int) -> "PromptBatch":
        """Return the prompts at some places, to be drawn for again. Their new seeds follow from the old ones and from
        the number of the attempt."""
        return PromptBatch(
            numbers=[self.numbers[place] for place in places],
            prompts=[self.prompts[place] for place in places],
            seeds=[prompt_seed(self.seeds[place], "again", attempt) for place in places],
            max_tokens=[self.max_tokens[place] for place in places],
            hints=[self.hints[place] for place in places] if self.hints else [],
            gold=[self.gold[place] for place in places] if self.gold else [],
        )


class Prompts:
    """All prompts of a stage.

    probe: token ids of a few whole samples, on which sampler and learner have to agree.
    """

    def __init__(self, stage: RolloutStage) -> None:
        self.stage = stage
        self._order = rng.stream_key(stage.seed, "grpo order")  # the name is from when no other kind had rollouts
        self._shares, task = stage.cell_shares, stage.root.task
        self._cell_N = self._shares.prompts(stage.prompt_count)  # by number of the prompt
        self._prompts: dict[int, list[int]] = {}
        self._gold: dict[int, list[int]] = {}
        # Number i is sample i of its cell: prompts of two mixtures differ only in cells.
        numbers = [(cell, np.flatnonzero(self._cell_N == i)) for i, cell in enumerate(self._shares.cells)]
        batches = task.batches("grpo", stage.seed, [(cell, number_N) for cell, number_N in numbers if len(number_N)])
        for batch in batches:
            for number, prompt, gold in zip(batch.index_N.tolist(), batch.prompts, batch.completions, strict=True):
                self._prompts[number], self._gold[number] = prompt, gold
        self._limit = [task.max_completion_tokens(cell) for cell in self._shares.cells]
        first = batches[0].take(slice(4))
        self.probe = [prompt + gold for prompt, gold in zip(first.prompts, first.completions, strict=True)]

    def at(self, step: int) -> PromptBatch:
        """Return the prompts of a step. The stage goes through all prompts in epochs, each in a fresh order. A
        curriculum does so for each cell by itself, whenever a place of that cell comes up."""
        count = self.stage.prompts_per_step
        part = slice(step * count, (step + 1) * count)
        if self.stage.curriculum:
            return self.batch(step, self._curriculum[part].tolist())
        return self.batch(step, self.order(part.start, part.stop).tolist())

    @cached_property
    def _curriculum(self) -> np.ndarray:
        """Number of the prompt at each place of all steps."""
        cell_N = self._shares.places(self.stage.steps, self.stage.prompts_per_step)
        number_N = np.empty_like(cell_N)
        for cell in range(len(self._shares.cells)):
            members, places = np.flatnonzero(self._cell_N == cell), np.flatnonzero(cell_N == cell)
            number_N[places] = members[rng.epochs(rng.stream_key(self._order, cell), len(members), 0, len(places))]
        return number_N

    @property
    def exhausted(self) -> bool:
        """True if no prompt is left that the stage would take."""
        return False

    def record(self, batch: PromptBatch, completions: Completions) -> dict[str, float]:
        """Record the completions of a finished step. Return numbers to log."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Return all that the next step depends on besides its number, as files of a checkpoint."""
        return {}

    def order(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of the prompts at places ``start .. stop`` of the endless sequence of epochs."""
        return rng.epochs(self._order, self.stage.prompt_count, start, stop)

    def batch(self, step: int, numbers: Sequence[int]) -> PromptBatch:
        """Return the prompts with these numbers, as the batch of a step. A seed follows from the stage's seed, the step
        and the prompt's place in it."""
        hint = self.stage.hint_at(step)
        return PromptBatch(
            list(numbers),
            prompts=[self._prompts[number] for number in numbers],
            seeds=[prompt_seed(self.stage.seed, "rollout", step, place) for place in range(len(numbers))],
            max_tokens=[self._limit[self._cell_N[number]] - hint for number in numbers],
            hints=[self._gold[number][:hint] for number in numbers] if hint else [],
            gold=[self._gold[number][hint:] for number in numbers],
        )


def group_rewards(task: Task, rewards: Sequence[Reward], batch: PromptBatch, completions: Completions) -> np.ndarray:
    """Return the weighted sum of all rewards for every completion, float32 [P, G].

    A prompt is solved once for its group. Each distinct completion of a group is judged once, with the hint in front if
    there is one. Raises RewardError if a reward does.
    """
    rows = completions.rows
    size = len(rows) // len(batch.prompts)
    if batch.hints:
        rows = [batch.hints[i // size] + row for i, row in enumerate(rows)]
    rewards_PG = np.empty((len(batch.prompts), size), dtype=np.float32)
    asked = zip(batch.prompts, batch.gold_completions, batch.seeds, strict=True)
    for i, (prompt, gold, seed) in enumerate(asked):
        group, seeds = rows[i * size : (i + 1) * size], range(seed, seed + size)
        rewards_PG[i] = group_payments(task, rewards, prompt, task.solution(prompt, gold), group, seeds)
    return rewards_PG
