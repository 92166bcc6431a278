"""Run a command: turn its errors into exit codes, and keep it running when its output can't be written.

0 done, 1 failed after work had begun, 2 refused before, 130 stopped. An error that the user can mend is printed as one
sentence; any other exception is a bug of this project and keeps its traceback.
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
from rayexp.errors import RayexpError, RefusedError, first_line, sentence
from rayexp.terminal import exit_with_error, tell

#: Errors that the user can mend. OSError includes ConnectionError.
MENDABLE = (RayexpError, ValueError, OSError)


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
    """Run a command and return its exit code. A reader that stops reading, such as ``| head``, is no error; output that
    cannot be written for another reason turns exit code 0 into 1."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for the user's own modules; last, so that they shadow no other
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
    """Let the first SIGTERM (`ray job stop`) or Ctrl-C raise KeyboardInterrupt, from the end of the block on. Ray
    starts in the block, and raises SystemExit on SIGTERM there. Further signals only print a line, because they would
    interrupt the end of Ray's processes."""
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


@atexit.register  # registered before Ray is imported, so it is called after Ray has ended its processes
def _ignore_signals_at_the_end() -> None:
    """Keep the exit code: on its way out Python makes signals deadly again."""
    for number in _STOP:
        if signal.getsignal(number) is _answer:
            signal.signal(number, signal.SIG_IGN)


class _Output:
    """A text stream that drops all output after the first error, and remembers that error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def close(self) -> None:
        """Flush. After an error, redirect the stream to the null device, so that Python's final flush succeeds."""
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
    """Replace standard output and error by streams that never raise; give the first."""
    _open_closed_streams()
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # write characters that the encoding lacks as \u03b2
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
    """Open the null device for each standard stream that the shell closed (``>&-``). Otherwise the next file that is
    opened gets its number, and receives what print or a library writes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  as long as the process lives
