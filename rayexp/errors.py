"""Kinds of failure.

A failed stage is retried, within limits, because machines die and networks drop. A ``PermanentError`` ends its stage at
once, because every further attempt would fail in the same way.
"""

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from rayexp import logs

#: Folders of code that is not the user's.
_LIBRARIES = (os.path.dirname(__file__), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


class RayexpError(RuntimeError):
    """An error with a message for the user: one sentence, unless a subclass says otherwise."""


class PermanentError(RayexpError):
    """A failure that every further attempt would repeat. The message is one sentence for the user."""


class NotFiniteError(PermanentError):
    """A loss, gradient, reward or log-probability that is NaN or infinite. Raised before the weights are changed."""


class RefusedError(RayexpError):
    """A request that cannot begin. The message is for the user, and may have several lines."""


class StageError(RayexpError):
    """The failure of a stage. The message is one sentence: which stage, where in it, and why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question that ends a refusal of ``name``, if a known name is similar; else ''."""
    names = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def none_of(name: str, known: Iterable[str]) -> str:
    """Return the predicate of a refusal of ``name``: the known names, and the most similar one."""
    names = list(known)
    return f"is not one of {', '.join(names) or 'those there are (none)'}{did_you_mean(name, names)}"


def not_among(field: str, name: str, known: Iterable[str]) -> str:
    """Return the refusal of a name that a field can't have."""
    return f"{field}={name!r} {none_of(name, known)}"


def first_line(error: BaseException) -> str:
    """Return the message of an exception as one line, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def error_context(where: Callable[[], str]) -> Iterator[None]:
    """Turn exceptions of the block into one sentence that begins with ``where()``, and begin its log lines with it too.
    Permanent errors stay permanent."""
    try:
        with logs.log_context(where):
            yield
    except Exception as error:
        kind = type(error) if isinstance(error, PermanentError | StageError) else StageError
        raise kind(f"{where()}: {located(error)}") from error


def sentence(error: BaseException) -> str:
    """Return the sentence that describes an exception to the user."""
    if isinstance(error, RayexpError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


def defined_at(value: Any) -> str:
    """Return the file and line of a function or class, or its repr if it has none."""
    try:
        return f"{inspect.getsourcefile(value)}, line {inspect.getsourcelines(value)[1]}"
    except (OSError, TypeError):
        return repr(value)


def located(error: BaseException) -> str:
    """Return the sentence of an exception, with the last line of the user's own code in its traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if not frame[0].startswith((*_LIBRARIES, "<"))]
    return sentence(error) + "".join(f" ({name}, line {line})" for name, line in own[-1:])
