"""Ray Train: a worker group, and the context of each of its ranks."""

import logging
import math
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import FailureConfig, LoggingConfig, ScalingConfig
from ray.train.collective import barrier
from ray.train.v2._internal.execution import context
from ray.train.v2.api.exceptions import WorkerGroupError

from rayexp import logs
from rayexp.config import RunConfig
from rayexp.errors import PermanentError, StageError, first_line, sentence


class RayTrainContext:
    """This rank of a worker group; implements ``TrainContext``."""

    def __init__(self) -> None:
        about = ray.train.get_context()
        self.rank, self.ranks, self.node = about.get_world_rank(), about.get_world_size(), about.get_node_rank()

    def device(self, usual: torch.device) -> torch.device:
        """See ``TrainContext.device``."""
        return ray.train.torch.get_device() if usual.type == "cuda" and self.ranks > 1 else usual

    def report(self, event: dict[str, Any]) -> None:
        """See ``TrainContext.report``."""
        ray.train.report(event)

    def broadcast(self, value: Any) -> Any:
        """See ``TrainContext.broadcast``."""
        given = [value]
        if self.ranks > 1:
            torch.distributed.broadcast_object_list(given)
        return given[0]

    def gather(self, value: Any) -> list[Any]:
        """See ``TrainContext.gather``."""
        found = [value] * self.ranks
        if self.ranks > 1:
            torch.distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """See ``TrainContext.barrier``."""
        barrier()

    def is_preempted(self) -> bool:
        """See ``TrainContext.is_preempted``."""
        return ray.train.get_preemption_info() is not None


def run_worker_group(
    work: Callable[[RayTrainContext], None], name: str, run_config: RunConfig, callbacks: Sequence[Any]
) -> None:
    """Run ``work`` on every rank of a worker group. Raises the exception of the rank at fault, or StageError."""
    gpus = run_config.train_gpus or 0.0
    with TemporaryDirectory(prefix="rayexp-train-") as folder:  # Ray's own notes on the run, of no use after it
        trainer = ray.train.torch.TorchTrainer(
            _rank,
            train_loop_config={"work": work},
            torch_config=ray.train.torch.TorchConfig(timeout_s=math.ceil(run_config.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=run_config.train_workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": run_config.train_cpus} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=folder,
                # The sweep retries failures, because it knows which of them would only come again.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
                callbacks=list(callbacks),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _first_cause(error) from error


def _rank(config: dict[str, Any]) -> None:
    # Ray writes a line at every report, through a logger that its own configuration does not reach.
    logging.getLogger(context.__file__).setLevel(logging.WARNING)
    logs.configure_worker_logging()
    config["work"](RayTrainContext())


def _first_cause(error: WorkerGroupError) -> Exception:
    """Return the exception of the rank at fault; the others only saw their connection to it break."""
    causes = [(rank, getattr(e, "_base_exc", e)) for rank, e in sorted(error.worker_failures.items())]
    for kind in (PermanentError, StageError, Exception):
        for rank, cause in causes:
            if isinstance(cause, kind):
                return cause if kind is not Exception else StageError(f"training rank {rank}: {sentence(cause)}")
    return StageError(first_line(error))
