"""The supervised part of a chain in one go: pretraining, SFT, and measurements between them.

In one Ray Train worker group for the whole part, because a group takes many seconds to start and tiny stages take few;
where even one is too many, in this process. Checkpoints are the store's own, not Ray Train's: they carry a manifest, so
a torn one is recognised and passed over, and where to go on does not depend on Ray's run snapshot, which is written
non-atomically.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import FailureConfig, LoggingConfig, ScalingConfig
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.v2._internal.execution import context
from ray.train.v2.api.exceptions import WorkerGroupError
from torch import Tensor, nn
from torch.nn import functional

from rayexp.distributed.saving import Saving
from rayexp.errors import NotFiniteError, PermanentError, StageError, error_context, first_line, sentence
from rayexp.execution import evaluate, pretrain, sft
from rayexp.models import decoder
from rayexp.spec import SFT, Evaluate, Pretrain, RunConfig, Stage, parse_stage
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import TokenBatch, vocabulary
from rayexp.telemetry import logs
from rayexp.telemetry.metric_log import MetricLog, PhaseTimer, report
from rayexp.training.loss import next_token_loss
from rayexp.training.trainer import Trainer, learning_rate

Progress = Callable[[dict[str, Any]], None]

#: Estimated FLOP of a stage above which a GPU gains more from compiled kernels than the minute that compiling takes, at
#: some 150 TFLOP/s without and twice as many with them.
COMPILED_FLOP = 2e16
COMPILED_ON = "cuda"
POINTS_PER_CURVE = 100
#: A report to Ray waits until the one before has been fetched; the journal does not.
STEPS_BETWEEN_REPORTS = 25


class SingleProcess:
    """The only rank there is; ``progress`` hears what it reports."""

    rank, ranks = 0, 1

    def __init__(self, progress: Progress) -> None:
        self.report = progress

    def broadcast(self, value: Any) -> Any:
        """What rank 0 says."""
        return value

    def barrier(self) -> None:
        """For all ranks."""

    def is_preempted(self) -> bool:
        """Whether the machine of any rank is about to be taken away."""
        return False


class RayTrainContext:
    """This rank of a Ray Train worker group; offers what ``SingleProcess`` does."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.ranks = context.get_world_rank(), context.get_world_size()
        self.report = ray.train.report
        self.broadcast = broadcast_from_rank_zero
        self.barrier = barrier

    def is_preempted(self) -> bool:
        """All ranks have to ask together."""
        return ray.train.get_preemption_info() is not None


def run_in_process(stages: Sequence[Stage], run_config: RunConfig, progress: Progress) -> None:
    """Run the unfinished ones of ``stages`` (parents first) in this process, which needs no cluster."""
    _run(stages, run_config, SingleProcess(progress))


def run(stages: Sequence[Stage], run_config: RunConfig, callbacks: Sequence[Any] = ()) -> None:
    """Run the unfinished ones of ``stages`` (parents first) in one worker group.

    Raises what the rank at fault raised, or StageError.
    """
    gpus = run_config.train_gpus or 0.0
    with TemporaryDirectory(prefix="rayexp-train-") as folder:  # Ray's own notes on the run, of no use after it
        trainer = ray.train.torch.TorchTrainer(
            _worker,
            train_loop_config={
                "stages": [stage.model_dump_json() for stage in stages],
                "execution": run_config.model_dump_json(),
            },
            torch_config=ray.train.torch.TorchConfig(timeout_s=math.ceil(run_config.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=run_config.train_workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": run_config.train_cpus} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=stages[0].id,
                storage_path=folder,
                # Failures are tried again by the sweep, which knows those that would only come again.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
                callbacks=list(callbacks),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _first_cause(error) from error


def _first_cause(error: WorkerGroupError) -> Exception:
    """What the rank at fault raised; the others only saw their connection to it break."""
    causes = [(rank, getattr(e, "_base_exc", e)) for rank, e in sorted(error.worker_failures.items())]
    for kind in (PermanentError, StageError, Exception):
        for rank, cause in causes:
            if isinstance(cause, kind):
                return cause if kind is not Exception else StageError(f"training rank {rank}: {sentence(cause)}")
    return StageError(first_line(error))


def _worker(config: dict[str, Any]) -> None:
    """What every rank of a worker group runs."""
    # Ray writes a line at every report, through a logger that its own configuration does not reach.
    logging.getLogger(context.__file__).setLevel(logging.WARNING)
    logs.configure_worker_logging()
    stages = [parse_stage(text) for text in config["stages"]]
    _run(stages, RunConfig.model_validate_json(config["execution"]), RayTrainContext())


def _run(stages: Sequence[Stage], run_config: RunConfig, context: SingleProcess | RayTrainContext) -> None:
    store = Store.of(run_config)
    store.require_shared()
    decoder.use_cores(run_config.train_cpus)
    for stage in stages:
        if context.broadcast(store.finished(stage.id)):
            continue
        if isinstance(stage, Evaluate):
            if context.rank == 0:
                with error_context(lambda stage=stage: stage.label):
                    evaluate.run(stage, store, run_config)
        else:
            assert isinstance(stage, Pretrain | SFT)
            train(stage, store, run_config, context)
        context.barrier()


def train(spec: Pretrain | SFT, store: Store, run_config: RunConfig, context: SingleProcess | RayTrainContext) -> None:
    """Train one stage from where it was left and publish it."""
    rank, ranks = context.rank, context.ranks
    stage: Any = pretrain if isinstance(spec, Pretrain) else sft
    device = decoder.resolve_device(run_config.device)
    if device.type == "cuda" and ranks > 1:
        device = ray.train.torch.get_device()
    module = stage.initial(spec, store, device)
    model: nn.Module = nn.parallel.DistributedDataParallel(module) if ranks > 1 else module
    trainer = Trainer(model, spec.optimiser, spec.steps, module)
    metric_log = MetricLog()
    timed = PhaseTimer()
    _restore(trainer, metric_log, spec, store, context)
    if device.type == COMPILED_ON and _training_flop(spec) > COMPILED_FLOP:
        trainer.compile()

    log_every = max(1, spec.steps // POINTS_PER_CURVE)
    report_every = max(STEPS_BETWEEN_REPORTS, log_every)
    losses = _LossMeter(device)
    saving, read = Saving(run_config), time.monotonic()
    reported, tokens, is_preempted = trainer.completed_steps, 0, False
    batches = PrefetchingLoader(partial(stage.batch, spec), spec.steps, timed)
    while (step := trainer.completed_steps) < spec.steps:
        with error_context(lambda step=step: f"{spec.label}, rank {rank}, step {step + 1}"):
            token_batches = batches.take(step)
            counted = sum(r.tokens_NT.size - len(r.tokens_NT) * stage.loss_start(r) for r in token_batches)
            tokens += sum(r.tokens_NT.size for r in token_batches)
            shards = [token_batch.shard(rank, ranks) for token_batch in token_batches]
            step_losses = [partial(_loss, trainer, losses, r, stage.loss_start(r), ranks / counted) for r in shards]
            try:
                with timed("learn"):
                    trainer.step(step_losses, overlap=partial(batches.make, step + 1))
            except NotFiniteError as error:
                raise NotFiniteError(f"{error} ({_culprits(trainer, shards, stage.loss_start)})") from error
            if (step + 1) % log_every and step + 1 < spec.steps:
                continue
            now = time.monotonic()
            measured = losses.read(ranks) | {"learning_rate": learning_rate(spec.optimiser, step, spec.steps)}
            speed = {"tokens_per_s": tokens / (now - read)}
            numbers = {spec.kind: measured | speed}
            metric_log.log(step + 1, **numbers)
            read, tokens = now, 0
            if step + 1 - reported >= report_every or step + 1 == spec.steps:
                with timed("report"):
                    context.report(report(spec, step + 1, **numbers))
                reported = step + 1
                warned, is_preempted = is_preempted, context.is_preempted()
                if is_preempted and not warned:
                    saving.hasten()  # a node is about to be taken away
            # Here, where the loss meters of all ranks are empty, so that a continued run draws the same curve.
            if rank == 0 and saving.due():
                with timed("checkpoint"):
                    _checkpoint(trainer, metric_log, spec, store)
                saving.done()

    if rank == 0:
        with error_context(lambda: f"{spec.label}, publishing"), TemporaryDirectory() as folder:
            decoder.save(module, Path(folder) / "model")
            metric_log.save(Path(folder))
            store.publish(spec, Path(folder), metric_log.provenance(run_config, timed.seconds))


class PrefetchingLoader:
    """Batches, each made while the device is at work on the one before."""

    def __init__(self, make: Callable[[int], list[TokenBatch]], steps: int, timed: PhaseTimer) -> None:
        self._make, self._steps, self._timed = make, steps, timed
        self._made: tuple[int, list[TokenBatch]] | None = None

    def make(self, step: int) -> None:
        """Make the batch of a step, if there is such a step."""
        if step < self._steps:
            with self._timed("samples"):
                self._made = (step, self._make(step))

    def take(self, step: int) -> list[TokenBatch]:
        """The batch of a step."""
        if self._made is None or self._made[0] != step:
            self.make(step)
        assert self._made is not None
        return self._made[1]


def _training_flop(spec: Pretrain | SFT) -> float:
    """6 for each parameter and token."""
    epochs = spec.epochs if isinstance(spec, SFT) else 1
    return 6.0 * spec.root.decoder.parameters(vocabulary.SIZE) * spec.root.world.max_tokens * spec.samples * epochs


def _nll(trainer: Trainer, token_batch: TokenBatch, start: int) -> Tensor:
    """Summed next-token loss of each sample, in nats."""
    tokens_NT = torch.from_numpy(token_batch.tokens_NT.astype(np.int64)).to(trainer.device, non_blocking=True)
    rows = len(tokens_NT)
    inputs_NT = functional.pad(tokens_NT[:, :-1], (0, 0, 0, -rows % trainer.row_multiple), value=vocabulary.PAD)
    with trainer.precision():
        logits_NTV = trainer.model(input_ids=inputs_NT, use_cache=False).logits
    return next_token_loss(logits_NTV[:rows], tokens_NT, start)


@torch.no_grad()
def _culprits(trainer: Trainer, shards: Sequence[TokenBatch], loss_start: Callable[[TokenBatch], int]) -> str:
    """Which samples of a batch have a loss that is not finite."""
    indices: list[int] = []
    for token_batch in shards:
        bad_N = ~torch.isfinite(_nll(trainer, token_batch, loss_start(token_batch)))
        indices += token_batch.index_N[bad_N.cpu().numpy()].tolist()
    return f"sample {', '.join(map(str, indices))}" if indices else "the loss of every single sample is finite"


def _loss(trainer: Trainer, losses: "_LossMeter", token_batch: TokenBatch, start: int, weight: float) -> Tensor:
    """Mean next-token loss of this rank's rows. DDP averages gradients over ranks: ``weight`` undoes that, so that the
    step is that of the whole batch, however many ranks share it. A rank without rows adds a zero gradient."""
    if len(token_batch.tokens_NT) == 0:
        nothing = torch.zeros((1, 1), dtype=torch.int64, device=trainer.device)
        return trainer.model(input_ids=nothing, use_cache=False).logits.sum() * 0.0
    nll_N = _nll(trainer, token_batch, start)
    ood_N = torch.from_numpy(token_batch.ood_N).to(trainer.device)
    losses.add(nll_N.detach(), token_batch.tokens_NT.shape[1] - start, ood_N)
    return nll_N.sum() * weight


class _LossMeter:
    """Mean loss in nats per token, ID and OOD apart, since it was last read. Stays on the device until then."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # ID nll, ID tokens, OOD nll, OOD tokens

    def add(self, nll_N: Tensor, tokens: int, ood_N: Tensor) -> None:
        ood = ood_N.double()
        nll = nll_N.double()
        rows = ood.sum()
        self._sums += torch.stack(
            [(nll * (1 - ood)).sum(), (len(ood) - rows) * tokens, (nll * ood).sum(), rows * tokens]
        )

    def read(self, ranks: int) -> dict[str, float]:
        """Over all ranks; a split that had no samples is left out."""
        if ranks > 1:
            torch.distributed.all_reduce(self._sums)
        id_nll, id_tokens, ood_nll, ood_tokens = self._sums.tolist()
        self._sums.zero_()
        pairs = {"id/loss": (id_nll, id_tokens), "ood/loss": (ood_nll, ood_tokens)}
        return {name: nll / tokens for name, (nll, tokens) in pairs.items() if tokens}


def _checkpoint(trainer: Trainer, metric_log: MetricLog, spec: Stage, store: Store) -> None:
    with TemporaryDirectory() as folder:
        torch.save(trainer.state(), Path(folder) / "trainer.pt")
        metric_log.save(Path(folder))
        store.save_checkpoint(spec.id, trainer.completed_steps, Path(folder))


def _restore(
    trainer: Trainer, metric_log: MetricLog, spec: Stage, store: Store, context: SingleProcess | RayTrainContext
) -> None:
    """Continue from the newest good checkpoint. Rank 0 reads it and hands it round, so that no two ranks can differ."""
    state: dict[str, Any] | None = None
    if context.rank == 0:
        with store.latest_checkpoint(spec.id) as folder:
            if folder is not None:
                state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
                metric_log.load(folder)
    state = context.broadcast(state)
    if state is not None:
        trainer.restore(state)
