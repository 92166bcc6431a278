"""The supervised part of a chain, in one go: training stages, and measurements between them.

The whole part runs in one Ray Train worker group, because a group takes many seconds to start and tiny stages take few.
``run_in_process`` does without a group. Checkpoints are the store's own, not Ray Train's. Their manifest shows which of
them are torn, and these are passed over. The step to go on from does not depend on Ray's run snapshot, because that is
not written atomically.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from rayexp import rng
from rayexp.config import RunConfig
from rayexp.distributed.saving import Saving
from rayexp.distributed.train_context import run_worker_group
from rayexp.errors import NotFiniteError, error_context
from rayexp.execution import measurements, runner
from rayexp.models import devices, io
from rayexp.stages import Stage, parse_stage
from rayexp.stages.memory import training_rank
from rayexp.store.artifacts import Store
from rayexp.tasks import TokenBatch
from rayexp.telemetry.metric_log import MetricLog, PhaseTimer, progress_event
from rayexp.training import checkpoint
from rayexp.training.batch_loss import LossMeter, culprits, rank_loss
from rayexp.training.checkpoint import TRAINER
from rayexp.training.context import SingleProcess, TrainContext
from rayexp.training.data import PrefetchingLoader
from rayexp.training.parallel import even_pieces, is_spread, spread
from rayexp.training.positions import with_random_positions
from rayexp.training.trainer import Trainer, learning_rate

#: Estimated FLOP of a stage above which compiled kernels save a GPU more than the minute that compiling takes, at some
#: 150 TFLOP/s without them and twice as many with them.
COMPILED_FLOP = 2e16
COMPILED_ON = "cuda"
POINTS_PER_CURVE = 100
#: Least steps between two reports to Ray, because a report waits until the one before has been fetched; the metric log
#: does not wait.
STEPS_BETWEEN_REPORTS = 25
METRICS = "metrics.parquet"


def run_in_process(stages: Sequence[Stage], run_config: RunConfig, progress: Callable[[dict[str, Any]], None]) -> None:
    """Run the unfinished ones of ``stages`` (parents first) in this process, which needs no cluster."""
    _run(stages, run_config, SingleProcess(progress))


def run(stages: Sequence[Stage], run_config: RunConfig, callbacks: Sequence[Any] = ()) -> None:
    """Run the unfinished ones of ``stages`` (parents first) in one worker group.

    Raises the exception of the rank at fault, or StageError.
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
            context.report(progress_event(stage, 0))  # otherwise Tune warns that the trial reported nothing
        context.barrier()


def train(stage: Any, store: Store, run_config: RunConfig, context: TrainContext) -> None:
    """Train one stage of the pool ``train`` from its last checkpoint, and publish it."""
    rank, ranks, kind = context.rank, context.ranks, runner(stage)
    device = context.device(devices.resolve_device(run_config.device))
    trainer = _trainer(stage, store, run_config, device, context)
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
            pieces = partial(even_pieces, tokens=run_config.micro_batch_tokens, context=context)
            shards = [piece for batch in batches for piece in pieces(batch)]
            losses = [
                partial(rank_loss, trainer, meter, shard, kind.loss_start(shard), ranks / counted) for shard in shards
            ]
            try:
                with timed("learn"):
                    trainer.step(losses, overlap=partial(loader.prefetch, step + 1))
            except NotFiniteError as error:
                found = culprits(trainer, shards, kind.loss_start)
                raise NotFiniteError(f"{error} ({found}); {trainer.remedy}") from error
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
            # A checkpoint is written here, where the loss meters of all ranks are empty, so that a continued run draws
            # the same curve.
            if context.broadcast(rank == 0 and saving.due()):
                with timed("checkpoint"):
                    _checkpoint(trainer, metric_log, stage, store, context)
                saving.done()

    with error_context(lambda: f"{stage.label}, publishing"):
        if is_spread(trainer.module):
            _checkpoint(trainer, metric_log, stage, store, context)  # no rank has the whole decoder
        if rank == 0:
            _publish(trainer, metric_log, stage, store, metric_log.provenance(run_config, timed.seconds))


def _trainer(stage: Any, store: Store, run_config: RunConfig, device: torch.device, context: TrainContext) -> Trainer:
    """Return the trainer of a stage at its start, with this rank's shard of the decoder if it is sharded."""
    kind = runner(stage)
    if _is_to_spread(stage, run_config, device, context):
        whole = kind.initial(stage, store, devices.CPU) if context.rank == 0 else None
        module = io.checkpointing(spread(whole, device, stage.optimiser.precision, context), run_config)
        return Trainer(module, stage.optimiser, stage.schedule_steps)
    module = io.checkpointing(kind.initial(stage, store, device), run_config)
    model: nn.Module = nn.parallel.DistributedDataParallel(module) if context.ranks > 1 else module
    return Trainer(model, stage.optimiser, stage.schedule_steps, module)


def _batches(stage: Stage, step: int) -> list[TokenBatch]:
    """Return the samples of a step, at the positions that the decoder is trained at."""
    batches, root = runner(stage).batch(stage, step), stage.root
    if root.decoder.positions != "randomised":
        return batches
    stream = rng.stream_key(stage.chain_seed, "positions", step)
    return [with_random_positions(batch, stream, root.task.max_tokens) for batch in batches]


def _is_to_spread(stage: Any, run_config: RunConfig, device: torch.device, context: TrainContext) -> bool:
    """Return whether to shard the decoder over the ranks; all ranks get the same answer."""
    if context.ranks == 1 or run_config.sharding != "auto":
        return context.ranks > 1 and run_config.sharding == "full"
    on_this_machine = context.gather(context.node).count(context.node)
    has = devices.memory(device) / (on_this_machine if device.type == "cpu" else 1)
    needs = training_rank(stage, run_config, spread=False).total
    return any(context.gather(needs > has))


def _checkpoint(trainer: Trainer, metric_log: MetricLog, stage: Stage, store: Store, context: TrainContext) -> None:
    with TemporaryDirectory() as folder:
        checkpoint.save(trainer.state(), Path(folder) / TRAINER, context.ranks)
        if context.rank == 0:
            (Path(folder) / METRICS).write_bytes(metric_log.to_bytes())
        store.save_checkpoint(stage.id, trainer.completed_steps, Path(folder), context)


def _publish(trainer: Trainer, metric_log: MetricLog, stage: Stage, store: Store, provenance: dict[str, Any]) -> None:
    """Publish the finished stage, on rank 0. A sharded decoder comes from the last checkpoint, by way of this machine's
    disk."""
    with TemporaryDirectory() as name:
        folder, module, vocabulary = Path(name), cast(PreTrainedModel, trainer.module), stage.root.task.vocabulary
        if is_spread(module):
            with store.latest_checkpoint(stage.id) as saved:
                assert saved is not None, "all ranks have just saved it"
                checkpoint.export_model(module, vocabulary, saved / TRAINER, folder / "model")
                if stage.keeps_state:
                    shutil.copytree(saved / TRAINER, folder / TRAINER)
        else:
            io.save(module, vocabulary, folder / "model")
            if stage.keeps_state:
                checkpoint.save(trainer.state(), folder / TRAINER)
        (folder / METRICS).write_bytes(metric_log.to_bytes())
        store.publish(stage, folder, provenance)


def _restore(trainer: Trainer, stage: Stage, store: Store, context: TrainContext) -> MetricLog:
    """Continue from the newest good checkpoint, and return its metrics. Without a checkpoint continue from the end of
    ``init``, if the stage continues that."""
    with store.latest_checkpoint(stage.id, context) as folder:
        if folder is not None:
            _continue(trainer, folder, context.ranks)
            return MetricLog(stage, (folder / METRICS).read_bytes())
    if stage.continues and stage.parent:
        with store.fetched(f"stages/{stage.parent.id}", f"{TRAINER}/", context) as folder:
            _continue(trainer, folder, context.ranks)
    return MetricLog(stage, None)


def _continue(trainer: Trainer, folder: Path, ranks: int) -> None:
    state = trainer.state()
    checkpoint.load(state, folder / TRAINER, ranks)
    trainer.restore(state)
