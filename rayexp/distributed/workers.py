"""The actors of a GRPO stage, and how they are kept warm from one stage to the next.

A trial's process owns its workers, and everything dies with it. Ray Tune hands a process on to the next trial that asks
for the same resources; if that one's decoder has the same shape, it finds the workers here and gives them new weights,
which takes milliseconds where an engine takes seconds. Workers that saw a failure are not used again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayexp.distributed import weight_sync
from rayexp.distributed.learner_actor import Learner
from rayexp.distributed.rollout_manager import RolloutManager
from rayexp.distributed.rpc import answer, calling, placed, unique
from rayexp.errors import StageError, first_line
from rayexp.spec import GRPO, RunConfig

LEARNER_BUNDLE = 0  # of a trial's placement group; rollout workers follow (the trial's own process holds none)

_idle_workers: "GRPOWorkers | None" = None


class GRPOWorkers:
    """One learner and its rollout workers. ``shape`` is all that the processes were started for."""

    def __init__(self, spec: GRPO, run_config: RunConfig) -> None:
        self.shape = _shape(spec, run_config)
        self.rollout_manager = RolloutManager(spec, run_config, first_bundle=LEARNER_BUNDLE + 1)
        self.learner = LearnerHandle(spec, run_config)
        self.group = weight_sync.TransferGroup([self.learner.actor, *self.rollout_manager.workers], run_config)

    def stop(self) -> None:
        """End all of its processes."""
        self.rollout_manager.stop()
        self.learner.stop()
        self.group.forget()


class LearnerDiedError(StageError):
    """The learner's process is gone; what it had not saved is lost."""


class LearnerHandle:
    """The learner actor, called with a limit on how long an answer may take."""

    def __init__(self, spec: GRPO, run_config: RunConfig) -> None:
        self._spec = spec
        self._timeout_s = run_config.timeout_s
        self._transfer = run_config.weight_transfer
        self.actor = (
            weight_sync.actor(Learner, run_config)
            .options(
                name=unique("learner"),
                **placed(LEARNER_BUNDLE),
                num_cpus=run_config.learner_cpus,
                num_gpus=run_config.learner_gpus or 0,
            )
            .remote()
        )

    def begin(self, spec: GRPO, run_config: RunConfig) -> None:
        """Turn to a stage, at its last checkpoint or at its init; a learner that died is waited for."""
        self._spec = spec
        self._timeout_s = run_config.timeout_s
        method = calling(self.actor, "begin", spec, max_task_retries=-1)
        self._answer(method.remote(spec.model_dump_json(), run_config.model_dump_json()), "begin")

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of one of the learner's methods. Raises LearnerDiedError, or what ``answer`` raises."""
        return self._answer(calling(self.actor, method, self._spec).remote(*arguments), method)

    def weights(self) -> Any:
        """A reference to the current weights, which are there when this returns."""
        if self._transfer == "object_store":
            reference = calling(self.actor, "weights", self._spec).remote()
        else:
            reference = calling(self.actor, "tensors", self._spec, tensor_transport=self._transfer).remote()
        self.call("completed")  # its calls are answered in order
        return reference

    def stop(self) -> None:
        """End its process."""
        ray.kill(self.actor)

    def _answer(self, reference: Any, method: str) -> Any:
        who = f"the learner of {self._spec.label}"
        try:
            return answer(reference, f"{who} ({method})", self._timeout_s)
        except RayActorError as error:
            raise LearnerDiedError(f"{who} died ({method}): {first_line(error)}") from error


@contextmanager
def acquire_workers(spec: GRPO, run_config: RunConfig) -> Iterator[GRPOWorkers]:
    """Provide workers that have turned to ``spec``: this process's idle ones if their shape fits, else new ones."""
    global _idle_workers
    if _idle_workers is not None and _idle_workers.shape != _shape(spec, run_config):
        _idle_workers.stop()
        _idle_workers = None
    workers = _idle_workers or GRPOWorkers(spec, run_config)
    _idle_workers = None
    try:
        workers.group.join()
        workers.rollout_manager.begin(spec, run_config)
        workers.learner.begin(spec, run_config)
        yield workers
    except BaseException:
        workers.stop()
        raise
    _idle_workers = workers


def _shape(spec: GRPO, run_config: RunConfig) -> tuple[Any, ...]:
    resources = (run_config.learner_cpus, run_config.learner_gpus, run_config.rollout_cpus, run_config.rollout_gpus)
    return (
        spec.root.decoder,
        spec.sampler,
        spec.optimiser.precision,
        run_config.device,
        run_config.weight_transfer,
        run_config.rollout_workers,
        resources,
    )
