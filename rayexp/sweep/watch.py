"""Tune's events, told to a ``Progress``; and a moment for each view of it."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from rayexp.errors import sentence
from rayexp.sweep.progress import Progress


class Watch(tune.Callback):
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
        elif "failed" in result:
            self._progress.end(trial.config["trial"], "failed", result["failed"])
        else:
            self._progress.end(trial.config["trial"], "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with open(trial.pickled_error_file, "rb") as file:  # Tune has just written it
            self._progress.end(trial.config["trial"], "failed", last_words(pickle.load(file)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for view in self._views:
            view()

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickle of what it was started with; this has a terminal, and is of no use later."""
        return {}


def last_words(error: Exception) -> str:
    """What is left to say of an exception that came through Ray."""
    return sentence(getattr(error, "cause", None) or error)
