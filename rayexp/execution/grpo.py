"""GRPO: (spec, finished init) -> artifact. One learner actor, its rollout workers, and this loop between them."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rayexp import rng
from rayexp.distributed.saving import Saving
from rayexp.distributed.weight_sync import direct
from rayexp.distributed.workers import GRPOWorkers, LearnerDiedError, acquire_workers
from rayexp.errors import error_context, first_line
from rayexp.execution import evaluate
from rayexp.execution.rollout_log import RolloutLog
from rayexp.models import decoder
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.base import Completions, prompt_seed
from rayexp.spec import GRPO, Evaluate, RunConfig
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import Corpus, Verifier
from rayexp.telemetry.metric_log import MetricLog, PhaseTimer, report

log = logging.getLogger(__name__)
Progress = Callable[[dict[str, Any]], None]


def run(spec: GRPO, evaluations: Sequence[Evaluate], run_config: RunConfig, progress: Progress) -> None:
    """Run the stage from where it was left, publish it, then measure it. ``progress`` hears of every step.

    If the learner's process dies, a new one goes on from the last checkpoint, ``run_config.worker_failures`` times; not
    where weights go directly between processes (rayexp.distributed.weight_sync): the attempt ends then.
    """
    store = Store.of(run_config)
    store.require_shared()
    if not store.finished(spec.id):
        with acquire_workers(spec, run_config) as workers:
            for failures in range(run_config.worker_failures + 1):
                try:
                    _train(spec, store, run_config, workers, progress)
                    break
                except LearnerDiedError as error:
                    if failures == run_config.worker_failures or direct(run_config):
                        raise
                    log.warning("%s; going on from its last checkpoint", first_line(error))
                    workers.learner.begin(spec, run_config)
            for evaluation in evaluations:
                metric_log = MetricLog()
                rows = workers.learner.call("measure", evaluation.model_dump_json())
                evaluate.publish(evaluation, rows, metric_log, store, run_config)
    decoder.use_cores(run_config.learner_cpus)
    for evaluation in evaluations:
        if not store.finished(evaluation.id):  # an earlier attempt died in between
            evaluate.run(evaluation, store, run_config)


def _train(spec: GRPO, store: Store, run_config: RunConfig, workers: GRPOWorkers, progress: Progress) -> None:
    task, timed = Task(spec), PhaseTimer()
    rollout_manager, learner = workers.rollout_manager, workers.learner
    saving, sampled = Saving(run_config), time.monotonic()
    completed = learner.call("completed")
    rollout_log = RolloutLog(store, spec.id, enabled=run_config.keep_rollouts, first_step=completed)
    drawn: Completions | None = learner.call("drawn")  # ahead of this step, with the weights before the last update

    for step in range(completed, spec.steps):
        with error_context(lambda step=step: f"{spec.label}, step {step + 1}"):
            with timed("sync"):
                rollout_manager.sync(learner.weights(), version=step)
                if (step - completed) % run_config.parity_every_syncs == 0:
                    rollout_manager.require_parity(task.probe, learner.call("score", task.probe))

            with timed("rollout"):
                completions = drawn or rollout_manager.generate(*task.request(step))
                ahead = spec.staleness and step + 1 < spec.steps
                draw_next = rollout_manager.start(*task.request(step + 1)) if ahead else lambda: None
            numbers, prompts = task.numbers(step), task.prompts(step)
            with timed("reward"):
                rewards_PG = task.rewards(prompts, completions)
                rollouts = rollout_statistics(rewards_PG, completions)
            now = time.monotonic()
            if step > completed:  # the first step's time is that of its samplers' start
                rollouts["tokens_per_s"] = tokens_sampled(prompts, completions, spec.group_size) / (now - sampled)
            sampled = now
            with timed("learn"):
                learning = learner.call("update", rollout_batches(numbers, prompts, completions, rewards_PG), rollouts)
            with timed("rollout"):
                drawn = draw_next()

            rollout_log.add(step, numbers, prompts, completions, rewards_PG)
            with timed("report"):
                progress(report(spec, step + 1, rollout=rollouts, grpo=learning))
            if saving.due():
                with timed("checkpoint"):
                    rollout_log.flush()
                    learner.call("checkpoint", drawn)
                saving.done()

    with error_context(lambda: f"{spec.label}, publishing"):
        learner.call("publish", rollout_log.table(spec.steps), timed.seconds)


class Task:
    """The prompts of a stage, in an order that is a function of (seed, step) alone, and the reward."""

    def __init__(self, spec: GRPO) -> None:
        world = spec.root.world
        self._spec = spec
        self._verifier = Verifier(world)
        self._budgets = [world.completion_budget(cell) for cell in world.cells.cells(spec.prompts)]
        token_batches = Corpus(world, spec.seed).tasks("grpo", spec.prompts, np.arange(spec.prompt_count))
        self._prompts = {
            int(number): prompt.tolist()
            for token_batch in token_batches
            for number, prompt in zip(token_batch.index_N, token_batch.prompts, strict=True)
        }
        gold = token_batches[0].tokens_NT[:4]
        self.probe = [row.tolist() for row in gold]  # fixed tokens for the parity check

    def numbers(self, step: int) -> list[int]:
        """Which of the stage's prompts step ``step`` uses: epochs, each in a fresh order."""
        first = step * self._spec.prompts_per_step
        order = rng.stream_key(self._spec.seed, "grpo order")
        return rng.epochs(order, self._spec.prompt_count, first, first + self._spec.prompts_per_step).tolist()

    def prompts(self, step: int) -> list[list[int]]:
        return [self._prompts[number] for number in self.numbers(step)]

    def request(self, step: int) -> tuple[list[list[int]], list[int], int, list[int]]:
        """What a sampler is asked for: prompts, seeds, size of a group, most tokens of each completion."""
        return self.prompts(step), self.seeds(step), self._spec.group_size, self.max_tokens(step)

    def seeds(self, step: int) -> list[int]:
        """A sampling seed for each prompt, from the run, the step and the prompt's place in it."""
        return [prompt_seed(self._spec.seed, "rollout", step, place) for place in range(self._spec.prompts_per_step)]

    def max_tokens(self, step: int) -> list[int]:
        """Most tokens of each completion; prompt i is of cell i modulo their number (``Corpus.tasks``)."""
        return [self._budgets[number % len(self._budgets)] for number in self.numbers(step)]

    def rewards(self, prompts: Sequence[Sequence[int]], completions: Completions) -> np.ndarray:
        """The reward of every completion: float32 [P, G]."""
        group = self._spec.group_size
        earned = [self._reward(prompts[i // group], row) for i, row in enumerate(completions.rows)]
        return np.array(earned, dtype=np.float32).reshape(-1, group)

    def _reward(self, prompt: Sequence[int], completion: Sequence[int]) -> float:
        """1 for a completion that ends in the right string, else 0."""
        return float(self._verifier.judge(prompt, completion).answer)


def rollout_statistics(rewards_PG: np.ndarray, completions: Completions) -> dict[str, float]:
    """Mean reward, share of groups that teach nothing because all members did equally well, mean length in tokens."""
    return {
        "reward": float(rewards_PG.mean()),
        "zero_variance_groups": float((rewards_PG.min(axis=1) == rewards_PG.max(axis=1)).mean()),
        "completion_tokens": float(completions.length_N.mean()),
    }


def tokens_sampled(prompts: Sequence[Sequence[int]], completions: Completions, group_size: int) -> int:
    """Tokens of all completions, each with its prompt."""
    return group_size * sum(map(len, prompts)) + int(completions.length_N.sum())
