"""Log lines with the stage and the step that they are about."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_location: ContextVar[Callable[[], str] | None] = ContextVar("location", default=None)


@contextmanager
def log_context(location: Callable[[], str]) -> Iterator[None]:
    """Begin log lines of the block with a location, e.g. ``composition-r0.01-s0/pretrain, step 12``."""
    token = _location.set(location)
    try:
        yield
    finally:
        _location.reset(token)


def current_location() -> str:
    """Return the location of the innermost ``log_context``; '' outside of any."""
    location = _location.get()
    return location() if location else ""


def configure_worker_logging(otherwise: Callable[[], str] = lambda: "") -> None:
    """Write this process's warnings to standard error, each after its location, or ``otherwise()`` if it has none.

    Ray keeps the standard error of a process in a file, which the dashboard shows, and forwards it to the driver.
    """
    logger = logging.getLogger("rayexp")
    handler = logging.StreamHandler()
    handler.setFormatter(_LocatedFormatter(otherwise))
    logger.handlers = [handler]  # a process that serves several trials calls this several times
    logger.propagate = False


class _LocatedFormatter(logging.Formatter):
    """Lines such as ``WARNING <location>: <message>``."""

    def __init__(self, otherwise: Callable[[], str]) -> None:
        super().__init__("%(levelname)s %(location)s%(message)s")
        self._otherwise = otherwise

    def format(self, record: logging.LogRecord) -> str:
        location = current_location() or self._otherwise()
        record.location = f"{location}: " if location else ""
        return super().format(record)
