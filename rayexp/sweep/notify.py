"""Report once how a sweep ended: by a POST to a URL, or to a shell command.

The report is one JSON object. Sending it never takes long, and never changes the outcome of the sweep. A URL or a
command may hold secrets, so at most its host is ever printed.
"""

import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rayexp.store.artifacts import StoreError
from rayexp.store.provenance import without_secrets
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from rayexp.timeouts import NoAnswerError, run_with_timeout

log = logging.getLogger(__name__)

LIMIT_S = 10.0
ALLOWED = "give an http or https URL, or a shell command"
#: A URL of any scheme.
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://\S*", re.IGNORECASE)

Outcome = Literal["finished", "failed", "stopped"]


@dataclass
class Course:
    """The course of a sweep so far. verdicts: as they are in the log."""

    study: Study
    plan: Plan
    failed: bool = False
    verdicts: Sequence[str] = ()


class NotToldError(Exception):
    """A report that could not be sent. The message is the end of a sentence."""


def require(to: str | None) -> None:
    """Raise ValueError, with one sentence, if no report can be sent to ``to``. The sentence does not show it."""
    if to is None:
        return
    if not to.strip() or "\0" in to:
        raise ValueError(f"notify={to!r} is {'a text with a NUL' if to.strip() else 'empty'}; {ALLOWED}")
    if url := _URL.fullmatch(to):
        _require_url(url[1].lower(), to)
    elif subprocess.run(["sh", "-n", "-c", to], capture_output=True).returncode:
        raise ValueError(f"notify is a shell command with a syntax error; {ALLOWED}")


def _require_url(scheme: str, to: str) -> None:
    if scheme not in ("http", "https"):
        raise ValueError(f"notify is a URL that begins with {scheme}://; {ALLOWED}")
    try:
        parts = urlsplit(to)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not to.isascii():
        raise ValueError(f"notify is a URL without a readable host; {ALLOWED}")
    if "@" in parts.netloc:
        raise ValueError("notify is a URL with a user name, which a POST does not send; give a command, such as curl")


@contextmanager
def announced(to: str | None, course: Course) -> Iterator[Course]:
    """Report to ``to``, if it is given, how the block ended: finished, failed, or stopped by KeyboardInterrupt."""
    begun, outcome = time.monotonic(), "failed"
    try:
        yield course
        outcome = "failed" if course.failed else "finished"
    except KeyboardInterrupt:
        outcome = "stopped"
        raise
    finally:
        if to is not None:
            tell(to, facts(course, outcome, time.monotonic() - begun))


def facts(course: Course, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return the report. stages_finished: None if the store does not answer in time."""
    store, ids = course.study.store, course.plan.labels
    try:
        finished = run_with_timeout(LIMIT_S, lambda: len(store.finished_ids(ids)), "notify: stages")
    except (StoreError, NoAnswerError):
        finished = None
    return {
        "study": course.study.name,
        "store": without_secrets([store.url])[0],
        "outcome": outcome,
        "stages_finished": finished,
        "stages_planned": len(ids),
        "verdicts": list(course.verdicts),
        "seconds": round(seconds, 1),
    }


def tell(to: str, found: Mapping[str, Any]) -> None:
    """Send a report to a URL or a command. Log one warning if that fails or takes longer than LIMIT_S."""
    text = json.dumps(found).encode()
    try:
        if _URL.fullmatch(to):
            _post(to, text)
        else:
            _run(to, text, {"RAYEXP_OUTCOME": found["outcome"], "RAYEXP_STUDY": found["study"]})
    except NotToldError as error:
        log.warning("notify: cannot deliver the report (outcome: %s): %s", found["outcome"], error)


def _post(url: str, text: bytes) -> None:
    request = Request(url, text, {"Content-Type": "application/json", "User-Agent": "rayexp"})
    host = urlsplit(url).hostname
    try:
        # The limit of urlopen is for each answer of the network; the one around it is for all.
        run_with_timeout(LIMIT_S, lambda: urlopen(request, timeout=LIMIT_S).close(), "notify")
    except HTTPError as error:
        raise NotToldError(f"{host} answered {error.code}") from None
    except Exception as error:  # whose message may have the URL in it
        reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
        if isinstance(reason, NoAnswerError | TimeoutError):  # the latter while connecting or sending
            raise NotToldError(f"{host} did not answer within {LIMIT_S:g} s") from None
        raise NotToldError(f"{host} cannot be reached ({type(reason).__name__})") from None


def _run(command: str, text: bytes, variables: Mapping[str, str]) -> None:
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.PIPE, env=os.environ | variables, start_new_session=True
    )
    try:
        process.communicate(text, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the shell, and what it has started
        process.wait()
        raise NotToldError(f"the command did not end within {LIMIT_S:g} s") from None
    if process.returncode:
        raise NotToldError(f"the command ended with exit code {process.returncode}")
