"""A cache of answers for a few seconds, so that many readers of a page cost a store no more than one."""

import time
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds that an answer is kept.
FRESH_S = 5.0
#: Answers that are kept at once.
KEPT = 256


class Cache:
    """Answers by key. Requests for an answer that is being found wait for it."""

    def __init__(self, fresh_s: float = FRESH_S) -> None:
        self._fresh_s = fresh_s
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._finding: dict[Hashable, Lock] = {}
        self._lock = Lock()

    def __call__(self, key: Hashable, find: Callable[[], T]) -> T:
        """Return the cached answer of a key if it is fresh, else the one that ``find`` returns."""
        with self._lock:
            finding = self._finding.setdefault(key, Lock())
        try:
            with finding:
                when, answer = self._answers.get(key, (-float("inf"), None))
                if time.monotonic() - when > self._fresh_s:
                    answer = find()
                    self._keep(key, answer)
        finally:
            with self._lock:  # keys come from untrusted URLs, most of which may have no answer
                if key not in self._answers:
                    self._finding.pop(key, None)
        return answer

    def _keep(self, key: Hashable, answer: Any) -> None:
        with self._lock:
            while len(self._answers) >= KEPT:
                oldest = next(iter(self._answers))
                del self._answers[oldest]
                self._finding.pop(oldest, None)
            self._answers[key] = time.monotonic(), answer
