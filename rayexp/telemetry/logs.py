"""Log lines that say which stage, and which step of it, they are about."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_place: ContextVar[Callable[[], str] | None] = ContextVar("place", default=None)


@contextmanager
def at(place: Callable[[], str]) -> Iterator[None]:
    """Work of the block is at ``place``, e.g. ``composition-r0.01-s0/pretrain, step 12``."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def place() -> str:
    """Where the innermost ``at`` is; empty outside of any."""
    where = _place.get()
    return where() if where else ""


def speak(otherwise: Callable[[], str] = lambda: "") -> None:
    """Write this process's warnings to standard error, each after its place, or ``otherwise`` where there is none.

    Ray keeps what a process writes there in a file of its own, which the dashboard shows, and hands it to the driver.
    """
    logger = logging.getLogger("rayexp")
    handler = logging.StreamHandler()
    handler.setFormatter(_Placed(otherwise))
    logger.handlers = [handler]  # a process that serves several trials is told so several times
    logger.propagate = False


class _Placed(logging.Formatter):
    """``WARNING <place>: <message>``."""

    def __init__(self, otherwise: Callable[[], str]) -> None:
        super().__init__("%(levelname)s %(place)s%(message)s")
        self._otherwise = otherwise

    def format(self, record: logging.LogRecord) -> str:
        where = place() or self._otherwise()
        record.place = f"{where}: " if where else ""
        return super().format(record)
