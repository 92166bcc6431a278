"""The processes that train one model together, as one of them sees the others."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

#: Is told of a stage's progress: what ``telemetry.metric_log.progress_event`` returns.
Progress = Callable[[dict[str, Any]], None]


class TrainContext(Protocol):
    """One rank among ``ranks``."""

    rank: int
    ranks: int

    def device(self, usual: torch.device) -> torch.device:
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


class SingleProcess:
    """The only rank there is."""

    rank, ranks = 0, 1

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def device(self, usual: torch.device) -> torch.device:
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
