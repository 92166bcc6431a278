"""The actors of a rollout stage, which stay warm from one stage to the next.

A trial's process owns its workers, and they die with it. Ray Tune hands a process on to the next trial that asks for
the same resources. If that trial's decoder has the same shape, it finds the workers here and gives them new weights,
which takes milliseconds where an engine takes seconds. Workers that saw a failure are not used again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rayexp.config import RunConfig
from rayexp.distributed import weight_sync
from rayexp.distributed.learner_actor import LearnerActor
from rayexp.distributed.rollout_manager import Engine, RolloutManager
from rayexp.distributed.rpc import answer, calling, placed, unique
from rayexp.errors import StageError, first_line
from rayexp.rl.learner import Learner
from rayexp.stages import RolloutStage, memory

#: Bundle of a learner's first rank in a trial's placement group; the other ranks and then rollout workers follow (the
#: trial's own process has none).
LEARNER_BUNDLE = 0
#: Seconds within which Ray reports that an actor died, after another one got no answer from it.
DEATH_IS_KNOWN_S = 10.0

_idle_workers: "StageWorkers | None" = None


class StageWorkers:
    """One learner and its rollout workers. shape: all settings that the start of the processes depends on."""

    def __init__(self, stage: RolloutStage, run_config: RunConfig) -> None:
        self.shape = _shape(stage, run_config)
        first = LEARNER_BUNDLE + run_config.learner_workers
        self.rollout_manager = RolloutManager(stage, run_config, first_bundle=first)
        self.learner = LearnerHandle(run_config)
        self.group = weight_sync.TransferGroup([*self.learner.actors, *self.rollout_manager.workers], run_config)

    def stop(self) -> None:
        """End all of its processes."""
        self.rollout_manager.stop()
        self.learner.stop()
        self.group.forget()


class LearnerDiedError(StageError):
    """The learner's process is gone; what it had not saved is lost."""


class LearnerHandle:
    """The actors of a learner, one for each rank, which are called together; each answer has a time limit.

    If one of several dies, all are restarted.
    """

    def __init__(self, run_config: RunConfig) -> None:
        self._run_config = run_config
        kind = weight_sync.actor(LearnerActor, run_config)
        resources = {"num_cpus": run_config.learner_cpus, "num_gpus": run_config.learner_gpus or 0}
        self.actors = [
            kind.options(name=unique("learner"), **placed(LEARNER_BUNDLE + rank), **resources).remote()
            for rank in range(run_config.learner_workers)
        ]

    def begin(
        self, stage: RolloutStage, run_config: RunConfig, make: Callable[..., Learner]
    ) -> tuple[int, dict[str, bytes]]:
        """Load a stage; see ``LearnerActor.begin``. If the learner died, wait until it is back."""
        self._stage, self._run_config = stage, run_config
        retries = -1
        if len(self.actors) > 1:
            self._meet()
            retries = 0  # one that dies now would come back outside of the group
        settings = (stage.model_dump_json(), run_config.model_dump_json())
        begun = self._start("begin", *settings, make, max_task_retries=retries)()
        self._chunks = self.call("weight_chunks", memory.CHUNK)
        return begun

    def _meet(self) -> None:
        """Form the group of the ranks."""
        timeout_s = self._run_config.timeout_s
        first = calling(self.actors[0], "open_meeting_place", self._stage, max_task_retries=-1).remote(timeout_s)
        (place,) = self._answers([first], "open_meeting_place")
        ranks = len(self.actors)
        met = [
            calling(actor, "meet", self._stage, max_task_retries=-1).remote(rank, ranks, place, timeout_s)
            for rank, actor in enumerate(self.actors)
        ]
        self._answers(met, "meet")

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the learner's methods and return its answer. Raises LearnerDiedError, or as ``answer`` does."""
        return self.start(method, *arguments)()

    def start(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Call without waiting. Return a function that waits for the answer."""
        return self._start(method, *arguments)

    def weights(self) -> Iterator[Any]:
        """Yield references to the current weights, in as many parts as ``weight_sync.chunks`` makes of them. A part is
        ready when its reference is yielded; the next one is made on demand."""
        if weight_sync.direct(self._run_config):
            transport = self._run_config.weight_transfer
            part = calling(self.actors[0], "tensors", self._stage, tensor_transport=transport).remote()
            self.call("ready")
            yield part
            return
        for names in self._chunks:
            part, *_ = [calling(actor, "weights", self._stage).remote(names) for actor in self.actors]
            self.call("ready")
            yield part

    def stop(self) -> None:
        """End its processes."""
        for actor in self.actors:
            ray.kill(actor)

    def _start(self, method: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        if len(self.actors) > 1:
            arguments = tuple(map(ray.put, arguments))  # once for all of them
        references = [calling(actor, method, self._stage, **options).remote(*arguments) for actor in self.actors]
        return lambda: self._answers(references, method)[0]

    def _answers(self, references: list[Any], method: str) -> list[Any]:
        """Return every rank's answer. Raises LearnerDiedError if a rank died, else what ``answer`` raises first."""
        who = f"the learner of {self._stage.label}"
        try:
            return answer(references, f"{who} ({method})", self._run_config.timeout_s)
        except (RayActorError, StageError) as error:
            died = error if isinstance(error, RayActorError) else self._death(references)
            if died is None:
                raise
            if len(self.actors) > 1:
                for actor in self.actors:  # those that wait for it in vain, too
                    ray.kill(actor, no_restart=False)
            raise LearnerDiedError(f"{who} died ({method}): {first_line(died)}") from died

    def _death(self, references: list[Any]) -> RayActorError | None:
        """Return how one of several ranks died, if its death made another one fail."""
        if len(references) < 2:
            return None
        ray.wait(references, num_returns=len(references), timeout=DEATH_IS_KNOWN_S)
        for reference in references:
            try:
                ray.get(reference, timeout=0)
            except RayActorError as error:
                return error
            except RayError:
                continue
        return None


@contextmanager
def acquire_workers(stage: RolloutStage, run_config: RunConfig) -> Iterator[StageWorkers]:
    """Provide workers for ``stage``: this process's idle ones if their shape fits, else new ones."""
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
    resources = (run_config.learner_workers, run_config.learner_cpus, run_config.learner_gpus, run_config.rollout_gpus)
    return Engine.of(stage, run_config), run_config.weight_transfer, run_config.rollout_workers, resources
