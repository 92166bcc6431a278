"""Prompts of a stage, in an order that is a function of (seed, step) alone, and rewards for their completions.

Shape suffixes: _P prompts, _G members of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayexp import rng
from rayexp.rewards import Reward
from rayexp.rewards.payment import group_payments
from rayexp.sampling.base import Completions, prompt_seed
from rayexp.stages import RolloutStage
from rayexp.tasks import Task
from rayexp.tasks.base import TokenBatch


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one step. numbers: which of the stage's prompts they are. max_tokens: most tokens of a completion."""

    numbers: list[int]
    prompts: list[list[int]]
    seeds: list[int]
    max_tokens: list[int]

    def request(self, group_size: int) -> tuple[list[list[int]], list[int], int, list[int]]:
        """Return the arguments of ``Sampler.generate``."""
        return self.prompts, self.seeds, group_size, self.max_tokens

    def again(self, places: Sequence[int], attempt: int) -> "PromptBatch":
        """Return the prompts at some places, to be drawn for once more: with seeds that follow from theirs and from the
        number of the attempt."""
        return PromptBatch(
            numbers=[self.numbers[place] for place in places],
            prompts=[self.prompts[place] for place in places],
            seeds=[prompt_seed(self.seeds[place], "again", attempt) for place in places],
            max_tokens=[self.max_tokens[place] for place in places],
        )


class Prompts:
    """All prompts of a stage.

    probe: token ids of a few whole samples, on which sampler and learner have to agree.
    """

    def __init__(self, stage: RolloutStage) -> None:
        self.stage = stage
        self._order = rng.stream_key(stage.seed, "grpo order")  # the stream is older than other kinds of such stages
        self._prompts: dict[int, list[int]] = {}
        self._max_tokens: dict[int, int] = {}
        ids_N = shares_of_id(stage.prompt_count, stage.id_share)
        first, *_ = self._add(stage.prompt_role, np.flatnonzero(~ids_N))
        self._add("id", np.flatnonzero(ids_N))
        self.probe: list[list[int]] = [row.tolist() for row in first.tokens_NT[:4]]

    def _add(self, role: str, number_N: np.ndarray) -> list[TokenBatch]:
        """Let the prompts with these numbers be the samples 0, 1, ... of a role. Return the samples.

        Sample i is of cell i modulo their number (``Task.of_role``).
        """
        task = self.stage.root.task
        cells = task.cells(role)
        batches = task.of_role("grpo", self.stage.seed, role, np.arange(len(number_N)))
        for batch in batches:
            for index, prompt in zip(batch.index_N.tolist(), batch.prompts.tolist(), strict=True):
                number = int(number_N[index])
                self._prompts[number] = prompt
                self._max_tokens[number] = task.max_completion_tokens(cells[index % len(cells)])
        return batches

    def at(self, step: int) -> PromptBatch:
        """Return the prompts of a step: the stage goes through all of them in epochs, each in a fresh order."""
        count = self.stage.prompts_per_step
        return self.batch(step, self.order(step * count, (step + 1) * count).tolist())

    @property
    def exhausted(self) -> bool:
        """True if no prompt is left that the stage would take."""
        return False

    def record(self, batch: PromptBatch, completions: Completions) -> dict[str, float]:
        """Take in the completions of a step, once it is done. Return what there is to log of them."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Return all that the next step depends on besides its number, as files of a checkpoint."""
        return {}

    def order(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of the prompts at places ``start .. stop`` of the endless sequence of epochs."""
        return rng.epochs(self._order, self.stage.prompt_count, start, stop)

    def batch(self, step: int, numbers: Sequence[int]) -> PromptBatch:
        """Return prompts by number, as those of a step. A seed comes from the run, the step and the prompt's place in
        it."""
        return PromptBatch(
            list(numbers),
            prompts=[self._prompts[number] for number in numbers],
            seeds=[prompt_seed(self.stage.seed, "rollout", step, place) for place in range(len(numbers))],
            max_tokens=[self._max_tokens[number] for number in numbers],
        )


def shares_of_id(count: int, share: float) -> np.ndarray:
    """Return which of the numbers below ``count`` are ID prompts: a share that is exact in every prefix, bool [count].

    Number i is one where floor((i+1) share) > floor(i share).
    """
    index_N = np.arange(count + 1, dtype=np.int64)
    return np.diff(np.floor(index_N * share)) > 0


def group_rewards(task: Task, rewards: Sequence[Reward], batch: PromptBatch, completions: Completions) -> np.ndarray:
    """Return the weighted sum of all rewards for every completion, float32 [P, G].

    A prompt is solved once a group, and a completion judged once, however many members of the group it is. Raises
    RewardError where a reward does.
    """
    rows = completions.rows
    size = len(rows) // len(batch.prompts)
    rewards_PG = np.empty((len(batch.prompts), size), dtype=np.float32)
    for i, (prompt, seed) in enumerate(zip(batch.prompts, batch.seeds, strict=True)):
        group, seeds = rows[i * size : (i + 1) * size], range(seed, seed + size)
        rewards_PG[i] = group_payments(task, rewards, prompt, task.solve(prompt), group, seeds)
    return rewards_PG
