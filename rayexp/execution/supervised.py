"""The part of a chain that learns from given samples, in one go: training stages, and measurements between them.

In one Ray Train worker group for the whole part, because a group takes many seconds to start and tiny stages take few;
where even one is too many, in this process. Checkpoints are the store's own, not Ray Train's: they carry a manifest, so
a torn one is recognised and passed over, and where to go on does not depend on Ray's run snapshot, which is written
non-atomically.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from rayexp import rng
from rayexp.config import RunConfig
from rayexp.distributed.saving import Saving
from rayexp.distributed.train_context import run_worker_group
from rayexp.errors import NotFiniteError, error_context
from rayexp.execution import measurements, runner
from rayexp.models import devices, io
from rayexp.stages import Stage, parse_stage
from rayexp.store.artifacts import Store
from rayexp.tasks import TokenBatch
from rayexp.telemetry.metric_log import MetricLog, PhaseTimer, progress_event
from rayexp.training.batch_loss import LossMeter, culprits, rank_loss
from rayexp.training.context import SingleProcess, TrainContext
from rayexp.training.data import PrefetchingLoader
from rayexp.training.positions import with_random_positions
from rayexp.training.trainer import Trainer, learning_rate

#: Estimated FLOP of a stage above which a GPU gains more from compiled kernels than the minute that compiling takes, at
#: some 150 TFLOP/s without and twice as many with them.
COMPILED_FLOP = 2e16
COMPILED_ON = "cuda"
POINTS_PER_CURVE = 100
#: A report to Ray waits until the one before has been fetched; the metric log does not.
STEPS_BETWEEN_REPORTS = 25
#: Names of the files of a checkpoint; the artifact of a stage that another one may continue has them, too.
STATE, METRICS = "trainer.pt", "metrics.parquet"


def run_in_process(stages: Sequence[Stage], run_config: RunConfig, progress: Callable[[dict[str, Any]], None]) -> None:
    """Run the unfinished ones of ``stages`` (parents first) in this process, which needs no cluster."""
    _run(stages, run_config, SingleProcess(progress))


def run(stages: Sequence[Stage], run_config: RunConfig, callbacks: Sequence[Any] = ()) -> None:
    """Run the unfinished ones of ``stages`` (parents first) in one worker group.

    Raises what the rank at fault raised, or StageError.
    """
    work = partial(_run_json, [stage.model_dump_json() for stage in stages], run_config.model_dump_json())
    run_worker_group(work, stages[0].id, run_config, callbacks)


def _run_json(stages: Sequence[str], run_config: str, context: TrainContext) -> None:
    _run([parse_stage(text) for text in stages], RunConfig.model_validate_json(run_config), context)


def _run(stages: Sequence[Stage], run_config: RunConfig, context: TrainContext) -> None:
    store = Store.of(run_config)
    store.require_shared()
    devices.use_cores(run_config.train_cpus)
    for stage in stages:
        if context.broadcast(store.finished(stage.id)):
            continue
        if stage.pool == "train" and stage.steps:
            train(stage, store, run_config, context)
        elif context.rank == 0:
            run_it = measurements.run if stage.pool == "measure" else runner(stage).run
            with error_context(lambda stage=stage: stage.label):
                run_it(stage, store, run_config)
            if not stage.steps:
                context.report(progress_event(stage, 0))  # or else Tune says that it has nothing to say of the trial
        context.barrier()


def train(stage: Any, store: Store, run_config: RunConfig, context: TrainContext) -> None:
    """Train one stage of the pool ``train`` from where it was left, and publish it."""
    rank, ranks, kind = context.rank, context.ranks, runner(stage)
    device = context.device(devices.resolve_device(run_config.device))
    module = io.checkpointing(kind.initial(stage, store, device), run_config)
    model: nn.Module = nn.parallel.DistributedDataParallel(module) if ranks > 1 else module
    trainer = Trainer(model, stage.optimiser, stage.schedule_steps, module)
    timed = PhaseTimer()
    metric_log = _restore(trainer, stage, store, context)
    if device.type == COMPILED_ON and stage.flops > COMPILED_FLOP:
        trainer.compile()

    log_every = max(1, stage.schedule_steps // POINTS_PER_CURVE)
    report_every = max(STEPS_BETWEEN_REPORTS, log_every)
    meter = LossMeter(device)
    saving, read = Saving(run_config), time.monotonic()
    reported, tokens, leaving = trainer.completed_steps, 0, False
    loader = PrefetchingLoader(partial(_batches, stage), stage.steps, timed)
    while (step := trainer.completed_steps) < stage.steps:
        with error_context(lambda step=step: f"{stage.label}, rank {rank}, step {step + 1}"):
            batches = loader.take(step)
            counted = sum(batch.tokens - int(kind.loss_start(batch).sum()) for batch in batches)
            tokens += sum(batch.tokens for batch in batches)
            own = [batch.shard(rank, ranks) for batch in batches]
            shards = [piece for batch in own for piece in batch.pieces(run_config.micro_batch_tokens)]
            losses = [
                partial(rank_loss, trainer, meter, shard, kind.loss_start(shard), ranks / counted) for shard in shards
            ]
            try:
                with timed("learn"):
                    trainer.step(losses, overlap=partial(loader.prefetch, step + 1))
            except NotFiniteError as error:
                raise NotFiniteError(f"{error} ({culprits(trainer, shards, kind.loss_start)})") from error
            if (step + 1) % log_every and step + 1 < stage.steps:
                continue
            now = time.monotonic()
            measured = meter.read(ranks) | {"learning_rate": learning_rate(stage.optimiser, step, stage.schedule_steps)}
            numbers = {stage.kind: measured | {"tokens_per_s": tokens / (now - read)}}
            metric_log.log(step + 1, **numbers)
            read, tokens = now, 0
            if step + 1 - reported >= report_every or step + 1 == stage.steps:
                with timed("report"):
                    context.report(progress_event(stage, step + 1, **numbers))
                reported = step + 1
                warned, leaving = leaving, context.is_preempted()
                if leaving and not warned:
                    saving.hasten()  # a node is about to be taken away
            # Here, where the loss meters of all ranks are empty, so that a continued run draws the same curve.
            if rank == 0 and saving.due():
                with timed("checkpoint"):
                    _checkpoint(trainer, metric_log, stage, store)
                saving.done()

    if rank == 0:
        with error_context(lambda: f"{stage.label}, publishing"), TemporaryDirectory() as folder:
            io.save(module, stage.root.task.vocabulary, Path(folder) / "model")
            (Path(folder) / METRICS).write_bytes(metric_log.to_bytes())
            if stage.keeps_state:
                torch.save(trainer.state(), Path(folder) / STATE)
            store.publish(stage, Path(folder), metric_log.provenance(run_config, timed.seconds))


def _batches(stage: Stage, step: int) -> list[TokenBatch]:
    """Return the samples of a step, at the positions that the decoder is trained at."""
    batches, root = runner(stage).batch(stage, step), stage.root
    if root.decoder.positions != "randomised":
        return batches
    stream = rng.stream_key(stage.chain_seed, "positions", step)
    return [with_random_positions(batch, stream, root.task.max_tokens) for batch in batches]


def _checkpoint(trainer: Trainer, metric_log: MetricLog, stage: Stage, store: Store) -> None:
    with TemporaryDirectory() as folder:
        torch.save(trainer.state(), Path(folder) / STATE)
        (Path(folder) / METRICS).write_bytes(metric_log.to_bytes())
        store.save_checkpoint(stage.id, trainer.completed_steps, Path(folder))


def _restore(trainer: Trainer, stage: Stage, store: Store, context: TrainContext) -> MetricLog:
    """Continue from the newest good checkpoint, and return its metrics; where there is none, from where ``init`` ended,
    if the stage continues that. Rank 0 reads and hands round, so that no two ranks can differ."""
    state: dict[str, Any] | None = None
    logged: bytes | None = None
    if context.rank == 0:
        with store.latest_checkpoint(stage.id) as folder:
            if folder is not None:
                state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                logged = (folder / METRICS).read_bytes()
        if state is None and stage.continues and stage.parent:
            with store.fetched(f"stages/{stage.parent.id}", prefix=STATE) as folder:
                state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    state = context.broadcast(state)
    if state is not None:
        trainer.restore(state)
    return MetricLog(stage, logged)
