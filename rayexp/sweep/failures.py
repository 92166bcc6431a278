"""One sentence about a failure that came through Ray."""

import pickle
import re
from contextlib import suppress
from pathlib import Path

from rayexp.errors import PermanentError, StageError, sentence
from rayexp.formatting import one_line

#: The sentence about a failure that left no error behind.
DIED = "its process died"
#: Lines that name an exception in a text with tracebacks; the last one is what was raised.
_NAMED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): \S.*$", re.MULTILINE)
_NODE = re.compile(r"\bip(?:=|: )([\w.:]*\w)")


def why_failed(pickled_error: str | None, error_text: str | None) -> str:
    """Return one sentence about the error of a trial, from the files in which it is kept on this machine."""
    if pickled_error:
        with suppress(Exception):  # it is not there, or of a kind that only a worker knows
            return root_cause(pickle.loads(Path(pickled_error).read_bytes()))
    if error_text:
        with suppress(OSError):
            return root_cause(RuntimeError(Path(error_text).read_text(encoding="utf-8")))
    return DIED


def root_cause(error: Exception) -> str:
    """Return one sentence about an exception that came through Ray: its cause, or what Ray knows of a dead process."""
    if cause := getattr(error, "cause", None):
        known = isinstance(cause, PermanentError | StageError)
        return sentence(cause) if known else f"{sentence(cause)} (on the node {getattr(error, 'ip', 'unknown')})"
    text = str(error)
    where = "".join(f" on the node {ip}" for ip in _NODE.findall(text)[-1:])
    reasons = _NAMED.findall(text) or [line for line in text.splitlines() if line and not line[0].isspace()]
    return f"{DIED}{where}: {one_line(reasons[-1])}" if reasons else f"{DIED}{where}"
