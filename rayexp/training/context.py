"""The processes that train one model together, as one of them sees the others."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the store knows ranks, and is read where nothing is trained
    import torch

#: Is told of a stage's progress: what ``telemetry.metric_log.progress_event`` returns.
Progress = Callable[[dict[str, Any]], None]


class Ranks(Protocol):
    """One rank among ``ranks``, on machine number ``node``."""

    rank: int
    ranks: int
    node: int

    def gather(self, value: Any) -> list[Any]:
        """Return what each rank gives, in their order; all ranks have to."""
        ...


class TrainContext(Ranks, Protocol):
    """One rank of those that train."""

    def device(self, usual: "torch.device") -> "torch.device":
        """Return the device of this rank, where there may be several of the usual type."""
        ...

    def report(self, event: dict[str, Any]) -> None:
        """Tell the driver of progress; all ranks have to."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return what rank 0 gives."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...

    def is_preempted(self) -> bool:
        """Return whether the machine of any rank is about to be taken away; all ranks have to ask together."""
        ...


class Alone:
    """The only rank there is, on the only machine."""

    rank, ranks, node = 0, 1, 0

    def gather(self, value: Any) -> list[Any]:
        """See ``Ranks.gather``."""
        return [value]


ALONE = Alone()


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
