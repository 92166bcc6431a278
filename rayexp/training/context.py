"""The processes that train one model together, as one of them sees the others."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rayexp.errors import RayexpError

if TYPE_CHECKING:  # the store imports this module, also where nothing is trained
    import torch

T = TypeVar("T")
#: Callback for a stage's progress. It gets what ``telemetry.metric_log.progress_event`` returns.
Progress = Callable[[dict[str, Any]], None]


class Ranks(Protocol):
    """One rank among ``ranks``, on machine number ``node``."""

    rank: int
    ranks: int
    node: int

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order. All ranks have to call this."""
        ...


class TrainContext(Ranks, Protocol):
    """One rank of those that train."""

    def device(self, usual: "torch.device") -> "torch.device":
        """Return this rank's device. usual: its device if it were the only rank."""
        ...

    def report(self, event: dict[str, Any]) -> None:
        """Report progress to the driver. All ranks have to call this."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0. All ranks have to call this."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...

    def is_preempted(self) -> bool:
        """Return whether the machine of any rank is about to be taken away. All ranks have to call this."""
        ...


class Alone:
    """The only rank there is, on the only machine."""

    rank, ranks, node = 0, 1, 0

    def gather(self, value: Any) -> list[Any]:
        """See ``Ranks.gather``."""
        return [value]


ALONE = Alone()


def of_each(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """Return what ``work`` returns on each rank. An error of one rank is raised on all, because the others would wait
    for it until their time is up."""
    result: Any = None
    problem: Exception | None = None
    try:
        result = work()
    except (RayexpError, OSError) as error:
        problem = error
    found = ranks.gather((result, problem))
    for _, problem in found:
        if problem is not None:
            raise problem
    return [result for result, _ in found]


class SingleProcess(Alone):
    """The only rank that trains."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def device(self, usual: "torch.device") -> "torch.device":
        """See ``TrainContext.device``."""
        return usual

    def report(self, event: dict[str, Any]) -> None:
        """See ``TrainContext.report``."""
        self._progress(event)

    def broadcast(self, value: Any) -> Any:
        """See ``TrainContext.broadcast``."""
        return value

    def barrier(self) -> None:
        """See ``TrainContext.barrier``."""

    def is_preempted(self) -> bool:
        """See ``TrainContext.is_preempted``."""
        return False
