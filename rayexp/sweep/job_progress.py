"""The progress of a sweep, written into the metadata of its Ray job."""

import time

from rayexp.distributed import runtime
from rayexp.sweep.progress import Progress

SECONDS_BETWEEN_UPDATES = 10.0


class JobProgress:
    """A view of a Progress; call it often. It does nothing if the sweep was not submitted as a job."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._updated, self._shown = 0.0, ""

    def __call__(self) -> None:
        if time.monotonic() - self._updated < SECONDS_BETWEEN_UPDATES or self._progress.summary == self._shown:
            return
        self._updated, self._shown = time.monotonic(), self._progress.summary
        runtime.describe_job({"progress": self._shown})
