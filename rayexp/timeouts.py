"""A time limit for calls that have none of their own."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class NoAnswerError(Exception):
    """The absence of an answer within a time limit."""


def run_with_timeout(limit_s: float, call: Callable[[], T], name: str) -> T:
    """Return what ``call`` returns, or raise what it raises. Raises NoAnswerError after ``limit_s`` seconds.

    The call runs in a thread of its own, named ``name``, because a hanging system call can't be interrupted. After the
    limit the thread is left running; it does not keep the process from ending.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True, name=name).start()
    try:
        value, error = answers.get(timeout=limit_s)
    except queue.Empty:
        raise NoAnswerError from None
    if error is not None:
        raise error
    return cast(T, value)
