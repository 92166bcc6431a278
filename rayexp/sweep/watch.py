"""Tune's events, told to a ``Progress``; and a moment for each view of it."""

import pickle
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from rayexp.errors import PermanentError, StageError, sentence
from rayexp.spec import one_line
from rayexp.sweep.progress import Progress

#: All that is known of a failure that left no error behind.
DIED = "its process died"
#: Lines that name an exception in a text with tracebacks; the last one is what was raised.
_NAMED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): \S.*$", re.MULTILINE)
_NODE = re.compile(r"\bip(?:=|: )([\w.:]*\w)")


class ProgressCallback(tune.Callback):
    """The views are called after every turn of Tune's loop, some ten times a second."""

    def __init__(self, progress: Progress, views: Sequence[Callable[[], None]] = ()) -> None:
        self._progress = progress
        self._views = views

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.start(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "stage_id" in result:
            self._progress.report(trial.config["trial"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if "lease_lost" in result:
            self._progress.end(trial.config["trial"], "waiting", result["lease_lost"])
        elif why := result.get("failed") or result.get("not_shared"):
            self._progress.end(trial.config["trial"], "failed", why)
        else:
            self._progress.end(trial.config["trial"], "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take in a failure, perhaps of a trial that never started: its process could not be made."""
        self._progress.end(trial.config["trial"], "failed", why_failed(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for view in self._views:
            view()

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickle of what it was started with; this has a terminal, and is of no use later."""
        return {}


def why_failed(trial: Any) -> str:
    """Return one sentence about the error of a trial, from the files that Tune has just written on this machine."""
    if trial.pickled_error_file:
        with suppress(Exception):  # it is not there, or of a kind that only a worker knows
            return root_cause(pickle.loads(Path(trial.pickled_error_file).read_bytes()))
    if trial.error_file:
        with suppress(OSError):
            return root_cause(RuntimeError(Path(trial.error_file).read_text(encoding="utf-8")))
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
