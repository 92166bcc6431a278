"""What a person sees while a sweep runs: one line a trial now and then, and one when it ends."""

import time
from typing import Any

from ray import tune

#: Shown, in this order, when a trial reports them.
SHOWN = ("id/loss", "ood/loss", "reward", "kl", "tokens_per_s")


class ProgressLines(tune.Callback):
    """Prints to standard output; plain lines, so that a job's log reads the same as a terminal."""

    def __init__(self, labels: dict[str, str], every_s: float = 10.0) -> None:
        self._labels = labels
        self._every_s = every_s
        self._started = time.monotonic()
        self._begun: dict[str, float] = {}
        self._spoken: dict[str, float] = {}
        self._done = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._begun.setdefault(trial.trial_id, time.monotonic())
        self._say(f"start   {self._label(trial)}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "stage" not in result:
            return
        now = time.monotonic()
        if now - self._spoken.get(trial.trial_id, self._begun.get(trial.trial_id, now)) < self._every_s:
            return
        self._spoken[trial.trial_id] = now
        numbers = "  ".join(f"{name} {result[name]:.3g}" for name in SHOWN if name in result)
        self._say(f"        {result.get('stage')}  step {result.get('step')}/{result.get('steps')}  {numbers}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if "failed" in result or "lease_lost" in result:
            self._end(trial, "FAILED " if "failed" in result else "given up")
        else:
            self._end(trial, "done   ")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "FAILED ")

    def _end(self, trial: Any, word: str) -> None:
        self._done += 1
        took = time.monotonic() - self._begun.get(trial.trial_id, time.monotonic())
        self._say(f"{word} {self._label(trial)} in {took:.0f} s ({self._done} of {len(self._labels)} trials)")

    def _label(self, trial: Any) -> str:
        return self._labels[trial.config["trial"]]

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", flush=True)
