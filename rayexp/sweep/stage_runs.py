"""The runs of a tracker: one for each stage that makes a model, and one for the study.

A run has the label of its stage, the settings of its whole lineage, its curves over its own steps, and at the end the
measurements of its model. Each tracker is called from a thread of its own, because a server may be slow. A tracker that
fails is not called again; the sweep logs a warning and goes on.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rayexp.errors import first_line
from rayexp.stages import Stage
from rayexp.stages.settings import column, placed, plain
from rayexp.store.artifacts import Store
from rayexp.sweep.plan import Plan, Trial
from rayexp.sweep.tracker_clients import TrackerClient

log = logging.getLogger(__name__)

#: Seconds that the end of a sweep waits for a tracker to write its last records.
CLOSE_S = 60.0
#: The results of a finished measurement as a few numbers, by name.
Results = Callable[[Stage], Mapping[str, float]]


def params(stage: Stage) -> dict[str, Any]:
    """Return the id of a stage, and its settings with those of all that it is built on, such as ``grpo.kl_beta``."""
    return {"stage_id": stage.id} | {column(name): plain(value) for name, value in placed(stage).items()}


class StageRuns:
    """The runs that one tracker has of the stages of a study."""

    def __init__(self, client: TrackerClient, store: Store, results: Results) -> None:
        self._client = client
        self._store = store
        self._results = results
        self._runs: dict[str, Any] = {}  # those that have not ended, by id of the stage

    def log(self, stage: Stage, label: str, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to the run of a stage. The first of them start it."""
        if stage.id not in self._runs:
            self._runs[stage.id] = self._client.start(label, params(stage))
        self._client.log(self._runs[stage.id], step, numbers)

    def end_trial(self, trial: Trial, plan: Plan) -> None:
        """Add the measurements of a trial to the runs of the measured stages, and end the runs of the trial."""
        subjects = {stage.subject.id for stage in trial.stages}
        finished = self._store.finished_ids(subjects | {stage.id for stage in trial.stages})
        for stage in trial.stages:
            if stage.pool == "measure" and stage.id in finished:
                subject = stage.subject
                self.log(subject, plan.labels[subject.id], subject.steps, self._results(stage))
        for stage_id in subjects & self._runs.keys():
            self._client.end(self._runs.pop(stage_id), stage_id in finished)

    def write_study(self, study: str, verdicts: Mapping[str, str]) -> None:
        """Start a run named after the study, give it the verdicts, and end it."""
        run = self._client.start(study, {})
        self._client.write(run, verdicts)
        self._client.end(run, True)

    def end_all(self) -> None:
        """End the runs of a sweep that was stopped."""
        while self._runs:
            self._client.end(self._runs.popitem()[1], False)


class BackgroundWriter:
    """The runs of a tracker, written by a thread in the order of the calls."""

    def __init__(self, name: str, runs: StageRuns) -> None:
        self._name = name
        self._runs = runs
        self._calls: queue.SimpleQueue[Callable[[StageRuns], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker-{name}")
        self._thread.start()

    def call(self, call: Callable[[StageRuns], object]) -> None:
        """Queue a call for the thread, unless the tracker has failed."""
        if self._thread.is_alive():
            self._calls.put(call)

    def close(self) -> None:
        """Wait until everything is written, for at most ``CLOSE_S`` seconds; then log a warning."""
        self.call(StageRuns.end_all)
        self._calls.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning(
                "loggers: %s is still writing after %g s; giving up (the store has all records)", self._name, CLOSE_S
            )

    def _work(self) -> None:
        try:
            for call in iter(self._calls.get, None):
                call(self._runs)
        except Exception as error:
            log.warning(
                "loggers: %s failed and is switched off (the store has all records): %s",
                self._name,
                first_line(error),
            )
