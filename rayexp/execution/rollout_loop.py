"""The loop of every stage in which a policy draws completions and learns from them.

This module is the driver. It owns metrics, rollouts, timing and the record of the run; the learner owns weights and
optimiser.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rayexp.config import RunConfig
from rayexp.distributed import weight_sync
from rayexp.distributed.saving import Saving
from rayexp.distributed.workers import LearnerDiedError, StageWorkers, acquire_workers
from rayexp.errors import error_context, first_line
from rayexp.execution import measurements, runner
from rayexp.execution.rollout_log import RolloutLog
from rayexp.models import devices
from rayexp.rewards.answer import Answer
from rayexp.rl.hits import Hits
from rayexp.rl.prompts import PromptBatch, Prompts, group_rewards
from rayexp.rl.resampling import resampled, without_variance
from rayexp.rl.rollouts import rollout_batches
from rayexp.rl.unsolved import UnsolvedPrompts
from rayexp.sampling.base import Completions
from rayexp.stages import RolloutStage, Stage
from rayexp.store.artifacts import Store
from rayexp.telemetry.metric_log import MetricLog, PhaseTimer, progress_event

log = logging.getLogger(__name__)
Progress = Callable[[dict[str, Any]], None]
#: Names of the driver's files in a checkpoint.
METRICS, DRAWN = "metrics.parquet", "drawn.npz"


def run(stage: RolloutStage, evaluations: Sequence[Stage], run_config: RunConfig, progress: Progress) -> None:
    """Run the stage from its last checkpoint, publish it, then measure it. ``progress`` is called after every step.

    If the learner's process dies, a new one goes on from the last checkpoint, up to ``run_config.worker_failures``
    times. If weights go directly between processes (rayexp.distributed.weight_sync), its death ends the attempt.
    """
    store = Store.of(run_config)
    store.require_shared()
    if not store.finished(stage.id):
        with acquire_workers(stage, run_config) as workers:
            for failures in range(run_config.worker_failures + 1):
                try:
                    _train(stage, store, run_config, workers, progress)
                    break
                except LearnerDiedError as error:
                    if failures == run_config.worker_failures or weight_sync.direct(run_config):
                        raise
                    attempts = f"attempt {failures + 2} of {run_config.worker_failures + 1}"
                    log.warning("%s; restarting from its last checkpoint (%s)", first_line(error), attempts)
            for evaluation in evaluations:
                metric_log = MetricLog(evaluation)
                rows = workers.learner.call("measure", evaluation.model_dump_json(), runner(evaluation).measure)
                measurements.publish(evaluation, rows, metric_log, store, run_config)
    devices.use_cores(run_config.learner_cpus)
    for evaluation in evaluations:
        if not store.finished(evaluation.id):  # an earlier attempt died between publishing and measuring
            measurements.run(evaluation, store, run_config)


def _train(stage: RolloutStage, store: Store, run_config: RunConfig, workers: StageWorkers, progress: Progress) -> None:
    """Run the steps of the stage that are left (draw, reward, learn), then publish it."""
    timed, saving = PhaseTimer(), Saving(run_config)
    rollout_manager, learner = workers.rollout_manager, workers.learner
    completed, files = learner.begin(stage, run_config, runner(stage).Learner)
    prompts = UnsolvedPrompts(stage, files) if stage.only_unsolved else Prompts(stage)
    metric_log = MetricLog(stage, files.get(METRICS))
    rollout_log = RolloutLog(store, stage, enabled=run_config.keep_rollouts, first_step=completed)
    throughput, hits = _Throughput(), Hits(metric_log.last())
    vocabulary = stage.root.task.vocabulary
    tokens_at_once = run_config.micro_batch_tokens and run_config.micro_batch_tokens * run_config.learner_workers

    def start_drawing(batch: PromptBatch) -> Callable[[], Completions]:
        drawn = rollout_manager.start(*batch.request(stage.group_size))
        return lambda: drawn().until_their_end(vocabulary)

    def pay(batch: PromptBatch, completions: Completions) -> np.ndarray:
        throughput.count(batch, completions)
        with timed("reward"):
            rewards_PG = group_rewards(stage.root.task, stage.rewards, batch, completions)
            judged = stage.rewards == (Answer(),)
            right_PG = rewards_PG if judged else group_rewards(stage.root.task, (Answer(),), batch, completions)
        hits.count(batch, right_PG)
        return rewards_PG

    def draw_again(batch: PromptBatch) -> tuple[Completions, np.ndarray]:
        with timed("rollout"):
            completions = start_drawing(batch)()
        return completions, pay(batch, completions)

    drawn = Completions.from_bytes(files[DRAWN]) if DRAWN in files else None  # with the weights before the last update

    done = completed
    for step in range(completed, stage.steps):
        if prompts.exhausted:
            log.info("%s: every prompt has a right completion after %d of %d steps", stage.label, step, stage.steps)
            break
        with error_context(lambda step=step: f"{stage.label}, step {step + 1}"):
            with timed("sync"):
                rollout_manager.sync(learner.weights(), version=step)
                if (step - completed) % run_config.parity_every_syncs == 0:
                    rollout_manager.require_parity(prompts.probe, learner.call("score", prompts.probe))

            batch = prompts.at(step)
            mass = learner.start("gold_mass", batch.contexts, batch.gold)  # the learner is idle while others draw
            with timed("rollout"):
                completions = drawn or start_drawing(batch)()
                ahead = stage.draws_ahead and step + 1 < stage.steps
                next_drawn = start_drawing(prompts.at(step + 1)) if ahead else None
                hits.expect(batch, mass())
            rewards_PG, filtered = pay(batch, completions), {}
            if stage.resamples:
                completions, rewards_PG, count = resampled(batch, completions, rewards_PG, draw_again)
                filtered = {"drawn_per_kept": count / rewards_PG.size}
            ended_N = completions.ended(vocabulary)
            rollouts = (
                rollout_statistics(rewards_PG, completions, ended_N) | throughput.rate() | hits.totals() | filtered
            )
            with timed("learn"):
                learnt_N = None if stage.learns_from_truncated else ended_N
                batches = rollout_batches(batch, completions, rewards_PG, tokens_at_once, learnt_N)
                learning = learner.call("update", batches)
            with timed("rollout"):
                drawn = next_drawn() if next_drawn else None
            with timed("reward"):
                rollouts |= prompts.record(batch, completions)

            rollout_log.add(step, batch, completions, rewards_PG)
            numbers = {stage.kind: learning, "rollout": rollouts}
            metric_log.log(step + 1, **numbers)
            with timed("report"):
                progress(progress_event(stage, step + 1, **numbers))
            if saving.due():
                with timed("checkpoint"):
                    rollout_log.flush()
                    learner.call("checkpoint", _files(metric_log, drawn) | prompts.files())
                saving.done()
        done = step + 1

    with error_context(lambda: f"{stage.label}, publishing"):
        files = {METRICS: metric_log.to_bytes()} | rollout_log.files(done)
        learner.call("publish", files, metric_log.provenance(run_config, timed.seconds))


def _files(metric_log: MetricLog, drawn: Completions | None) -> dict[str, bytes]:
    """Return the driver's own files of a checkpoint: the metrics, and completions that were drawn ahead."""
    return {METRICS: metric_log.to_bytes()} | ({DRAWN: drawn.to_bytes()} if drawn else {})


class _Throughput:
    """Tokens drawn a second, over whole steps. The first step has no rate, because its time includes the start of its
    samplers."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._tokens = 0

    def count(self, batch: PromptBatch, completions: Completions) -> None:
        """Add the tokens of completions, and of the prompt and hint before each."""
        group_size = len(completions.length_N) // len(batch.prompts)
        self._tokens += group_size * sum(map(len, batch.contexts)) + int(completions.length_N.sum())

    def rate(self) -> dict[str, float]:
        """Return the rate since the last call; empty at the first call."""
        now, before, tokens = time.monotonic(), self._last, self._tokens
        self._last, self._tokens = now, 0
        return {} if before is None else {"tokens_per_s": tokens / (now - before)}


def rollout_statistics(rewards_PG: np.ndarray, completions: Completions, ended_N: np.ndarray) -> dict[str, float]:
    """Return the mean reward, the share of groups that teach nothing because all members did equally well, the mean
    length in tokens, and the share of completions that did not end."""
    return {
        "reward": float(rewards_PG.mean()),
        "zero_variance_groups": float(without_variance(rewards_PG).mean()),
        "completion_tokens": float(completions.length_N.mean()),
        "truncated": float(1 - ended_N.mean()),
    }
