"""The actors of a rollout stage, and how they are kept warm from one stage to the next.

A trial's process owns its workers, and everything dies with it. Ray Tune hands a process on to the next trial that asks
for the same resources; if that one's decoder has the same shape, it finds the workers here and gives them new weights,
which takes milliseconds where an engine takes seconds. Workers that saw a failure are not used again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayexp.config import RunConfig
from rayexp.distributed import weight_sync
from rayexp.distributed.learner_actor import LearnerActor
from rayexp.distributed.rollout_manager import Engine, RolloutManager
from rayexp.distributed.rpc import answer, calling, placed, unique
from rayexp.errors import StageError, first_line
from rayexp.rl.learner import Learner
from rayexp.stages import RolloutStage

LEARNER_BUNDLE = 0  # of a trial's placement group; rollout workers follow (the trial's own process holds none)

_idle_workers: "StageWorkers | None" = None


class StageWorkers:
    """One learner and its rollout workers. ``shape`` is all that the processes were started for."""

    def __init__(self, stage: RolloutStage, run_config: RunConfig) -> None:
        self.shape = _shape(stage, run_config)
        self.rollout_manager = RolloutManager(stage, run_config, first_bundle=LEARNER_BUNDLE + 1)
        self.learner = LearnerHandle(run_config)
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

    def __init__(self, run_config: RunConfig) -> None:
        self._run_config = run_config
        self.actor = (
            weight_sync.actor(LearnerActor, run_config)
            .options(
                name=unique("learner"),
                **placed(LEARNER_BUNDLE),
                num_cpus=run_config.learner_cpus,
                num_gpus=run_config.learner_gpus or 0,
            )
            .remote()
        )

    def begin(
        self, stage: RolloutStage, run_config: RunConfig, make: Callable[..., Learner]
    ) -> tuple[int, dict[str, bytes]]:
        """Turn to a stage; see ``LearnerActor.begin``. A learner that died is waited for."""
        self._stage, self._run_config = stage, run_config
        method = calling(self.actor, "begin", stage, max_task_retries=-1)
        return self._answer(method.remote(stage.model_dump_json(), run_config.model_dump_json(), make), "begin")

    def call(self, method: str, *arguments: Any) -> Any:
        """Return the answer of one of the learner's methods. Raises LearnerDiedError, or what ``answer`` raises."""
        return self.start(method, *arguments)()

    def start(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Call without waiting. Return a function that waits for the answer."""
        reference = calling(self.actor, method, self._stage).remote(*arguments)
        return lambda: self._answer(reference, method)

    def weights(self) -> Any:
        """Return a reference to the current weights, which are there when this returns."""
        if weight_sync.direct(self._run_config):
            transport = self._run_config.weight_transfer
            reference = calling(self.actor, "tensors", self._stage, tensor_transport=transport).remote()
        else:
            reference = calling(self.actor, "weights", self._stage).remote()
        self.call("ready")
        return reference

    def stop(self) -> None:
        """End its process."""
        ray.kill(self.actor)

    def _answer(self, reference: Any, method: str) -> Any:
        who = f"the learner of {self._stage.label}"
        try:
            return answer(reference, f"{who} ({method})", self._run_config.timeout_s)
        except RayActorError as error:
            raise LearnerDiedError(f"{who} died ({method}): {first_line(error)}") from error


@contextmanager
def acquire_workers(stage: RolloutStage, run_config: RunConfig) -> Iterator[StageWorkers]:
    """Provide workers that have turned to ``stage``: this process's idle ones if their shape fits, else new ones."""
    global _idle_workers
    if _idle_workers is not None and _idle_workers.shape != _shape(stage, run_config):
        _idle_workers.stop()
        _idle_workers = None
    workers = _idle_workers or StageWorkers(stage, run_config)
    _idle_workers = None
    try:
        workers.group.join()
        workers.rollout_manager.begin(stage, run_config)
        yield workers
    except BaseException:
        workers.stop()
        raise
    _idle_workers = workers


def _shape(stage: RolloutStage, run_config: RunConfig) -> tuple[Any, ...]:
    resources = (run_config.learner_cpus, run_config.learner_gpus, run_config.rollout_gpus)
    return Engine.of(stage, run_config), run_config.weight_transfer, run_config.rollout_workers, resources
