"""Batches that are made while the device is at work."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class PrefetchingLoader(Generic[Batch]):
    """Batches by step, each made while the device is at work on the one before.

    make: makes the batch of a step. timed: times the block that does.
    """

    def __init__(
        self, make: Callable[[int], Batch], steps: int, timed: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self._make, self._steps, self._timed = make, steps, timed
        self._made: tuple[int, Batch] | None = None

    def prefetch(self, step: int) -> None:
        """Make the batch of a step, if there is such a step."""
        if step < self._steps:
            with self._timed("samples"):
                self._made = (step, self._make(step))

    def take(self, step: int) -> Batch:
        """Return the batch of a step."""
        if self._made is None or self._made[0] != step:
            self.prefetch(step)
        assert self._made is not None
        return self._made[1]
