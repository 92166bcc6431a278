"""Run a command: its errors become exit codes, and what becomes of its output never stops its work.

0 done, 1 failed after work had begun, 2 refused before, 130 stopped. What a person can mend is said in one sentence;
any other exception is a fault of this project and keeps its traceback.
"""

import atexit
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from rayexp.config import explain
from rayexp.errors import PermanentError, RefusedError, StageError, first_line, sentence
from rayexp.terminal import exit_with_error, tell

#: OSError includes ConnectionError; StoreError is a PermanentError.
MENDABLE = (RefusedError, PermanentError, StageError, ValueError, OSError)


class FailedError(Exception):
    """Work that had begun failed. The message is one sentence for a person."""


@contextmanager
def working() -> Iterator[None]:
    """Raise errors of the block as failures of work that has begun."""
    try:
        yield
    except ValidationError as error:
        raise FailedError(explain(error)) from error
    except MENDABLE as error:
        raise FailedError(sentence(error)) from error


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit code. Output that its reader did not want is lost in silence, as behind
    ``| head``; output that could not be written for another reason makes a 1 of a 0."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # a user's own modules are there; last, so that they take the place of no other
    with _standard_streams() as output:
        code = _exit_code(command)
        output.flush()
        if output.error and output.error.errno != errno.EPIPE and not code:
            code = tell("failed", f"standard output cannot be written ({output.error.strerror})", code=1)
    return code


def _exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except FailedError as error:
        return tell("failed", str(error), code=1)
    except ValidationError as error:
        return exit_with_error(explain(error))
    except RefusedError as error:
        return exit_with_error(*str(error).splitlines())
    except MENDABLE as error:
        return exit_with_error(first_line(error) if isinstance(error, OSError) else str(error))
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        if end.code:
            raise
        return 0  # after --help


@contextmanager
def stopped_once() -> Iterator[None]:
    """Let the first SIGTERM (`ray job stop`) or Ctrl-C raise KeyboardInterrupt, from the end of the block on; in the
    block Ray starts, which has a SystemExit for SIGTERM. Further signals are answered and change nothing, because what
    they would interrupt is how Ray's processes are ended."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        _stop()
    for number in _STOP:
        signal.signal(number, _stop)


_STOP = (signal.SIGINT, signal.SIGTERM)


def _stop(*_: object) -> None:
    for number in _STOP:
        signal.signal(number, _answer)
    raise KeyboardInterrupt


def _answer(*_: object) -> None:
    os.write(2, b"already stopping, which takes a few seconds\n")


@atexit.register  # before Ray is imported, and so called after Ray has ended its processes
def _ignore_signals_at_the_end() -> None:
    """Keep the exit code: Python gives signals their deadly meaning back before it is gone."""
    for number in _STOP:
        if signal.getsignal(number) is _answer:
            signal.signal(number, signal.SIG_IGN)


class _Output:
    """A text stream that, once it can't be written, drops what it is given and remembers why."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def close(self) -> None:
        """Flush; where that failed, leave nothing for Python's own flush at its end to complain about."""
        self.flush()
        if self.error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.error:
            return
        try:
            action()
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _standard_streams() -> Iterator[_Output]:
    """Let standard output and error never raise, whatever they lead to; give the first."""
    _open_closed_streams()
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # what an encoding lacks is spelt: \u03b2
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    output, errors = _Output(sys.stdout), _Output(sys.stderr)
    sys.stdout, sys.stderr = output, errors  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield output
    finally:
        output.close()
        errors.close()
        sys.stdout, sys.stderr = before


def _open_closed_streams() -> None:
    """Put the null device where the shell closed a standard stream (``>&-``): else the next file that is opened gets
    its number, and what Python's own print or a library writes there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  as long as the process lives
