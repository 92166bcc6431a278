"""The actors of a GRPO stage, and how they are kept warm from one stage to the next.

A trial's process owns its crew, and everything dies with it. Ray Tune hands a process on to the next trial that asks
for the same resources; if that one's decoder has the same shape, it finds the crew here and gives it new weights, which
takes milliseconds where an engine takes seconds. A crew that saw a failure is not used again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayexp.distributed import weight_sync as transfer
from rayexp.distributed.learner_actor import Learner
from rayexp.distributed.rollout_manager import RolloutFleet
from rayexp.distributed.rpc import answer, calling, placed, unique
from rayexp.errors import StageError, first_line
from rayexp.spec import GRPO, Execution

LEARNER_BUNDLE = 0  # of a trial's placement group; rollout workers follow (the trial's own process holds none)

_warm: "Crew | None" = None


class Crew:
    """One learner and the fleet of rollout workers. ``shape`` is all that the processes were started for."""

    def __init__(self, spec: GRPO, execution: Execution) -> None:
        self.shape = _shape(spec, execution)
        self.fleet = RolloutFleet(spec, execution, first_bundle=LEARNER_BUNDLE + 1)
        self.learner = LearnerHandle(spec, execution)
        self.group = transfer.Group([self.learner.actor, *self.fleet.workers], execution)

    def stop(self) -> None:
        """End all of its processes."""
        self.fleet.stop()
        self.learner.stop()
        self.group.forget()


class LearnerDiedError(StageError):
    """The learner's process is gone; what it had not saved is lost."""


class LearnerHandle:
    """The learner actor, called with a limit on how long an answer may take."""

    def __init__(self, spec: GRPO, execution: Execution) -> None:
        self._spec = spec
        self._timeout_s = execution.timeout_s
        self._transfer = execution.weight_transfer
        self.actor = (
            transfer.actor(Learner, execution)
            .options(
                name=unique("learner"),
                **placed(LEARNER_BUNDLE),
                num_cpus=execution.learner_cpus,
                num_gpus=execution.learner_gpus or 0,
            )
            .remote()
        )

    def begin(self, spec: GRPO, execution: Execution) -> None:
        """Turn to a stage, at its last checkpoint or at its init; a learner that died is waited for."""
        self._spec = spec
        self._timeout_s = execution.timeout_s
        method = calling(self.actor, "begin", spec, max_task_retries=-1)
        self._answer(method.remote(spec.model_dump_json(), execution.model_dump_json()), "begin")

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
def crew_for(spec: GRPO, execution: Execution) -> Iterator[Crew]:
    """A crew that has turned to ``spec``: this process's warm one if its shape fits, else a new one."""
    global _warm
    if _warm is not None and _warm.shape != _shape(spec, execution):
        _warm.stop()
        _warm = None
    crew = _warm or Crew(spec, execution)
    _warm = None
    try:
        crew.group.join()
        crew.fleet.begin(spec, execution)
        crew.learner.begin(spec, execution)
        yield crew
    except BaseException:
        crew.stop()
        raise
    _warm = crew


def _shape(spec: GRPO, execution: Execution) -> tuple[Any, ...]:
    resources = (execution.learner_cpus, execution.learner_gpus, execution.rollout_cpus, execution.rollout_gpus)
    return (
        spec.root.decoder,
        spec.sampler,
        spec.optimiser.precision,
        execution.device,
        execution.weight_transfer,
        execution.rollout_workers,
        resources,
    )
