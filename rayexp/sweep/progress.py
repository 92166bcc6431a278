"""The state of a running sweep: of each trial and each stage, and how long the rest will take.

``scheduler.TuneEvents`` records events in it; views read a ``Progress`` at any time and change nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayexp.stages import Stage
from rayexp.sweep.plan import Plan, Trial
from rayexp.telemetry.metrics import METRICS

#: Largest factor by which the errors of other pools' estimates correct those of a pool that has not run yet.
BORROWED_AT_MOST = 2.0
STATES = ("done", "running", "waiting", "elsewhere", "failed", "blocked")


@dataclass
class Running:
    """A running trial. Until its first report ``stage`` is its first stage and ``steps`` is 0. ``estimates``: seconds
    of each of its stages, by id."""

    trial: Trial
    since: float
    stage: Stage
    estimates: Mapping[str, float]
    step: int = 0
    steps: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
    heard: float = 0.0
    _first: tuple[float, int] = (0.0, 0)  # of the stage's reports: when, and of which step
    _first_report: tuple[float, float] = (0.0, 0.0)  # the trial's first report: when, and ``done_s`` then

    def report(self, stage: Stage, step: int, steps: int, numbers: dict[str, float], now: float) -> None:
        """Record a report of the stage."""
        first_report = not self.steps
        if first_report or stage is not self.stage:
            self._first = (now, step)
        self.stage, self.step, self.steps, self.numbers, self.heard = stage, step, steps, numbers, now
        if first_report:
            self._first_report = (now, self.done_s)

    @property
    def done_s(self) -> float:
        """Return the estimated seconds of the work that the trial has done."""
        before = self.trial.stages[: self.trial.stages.index(self.stage)]
        share = self.step / self.steps if self.steps else 0.0
        return sum(self.estimates[stage.id] for stage in before) + self.estimates[self.stage.id] * share

    @property
    def work(self) -> tuple[float, float]:
        """Return the estimated and the true seconds between its first and its last report, without its start."""
        when, done_s = self._first_report
        return (self.done_s - done_s, self.heard - when) if self.steps else (0.0, 0.0)

    def whole_work(self, now: float) -> tuple[float, float]:
        """Return the estimated and the true seconds of a trial that ends now: since its first report, or since its
        start if there was no report in the first half of its estimated work."""
        total_s = sum(self.estimates[stage.id] for stage in self.trial.stages)
        when, done_s = self._first_report if self.steps and self._first_report[1] <= total_s / 2 else (self.since, 0.0)
        return total_s - done_s, now - when

    def remaining_s(self, now: float) -> float | None:
        """Return the seconds to the last step of the stage at the pace of its reports; None before the second one."""
        when, step = self._first
        if self.step <= step:
            return None
        return max(0.0, (self.steps - self.step) * (self.heard - when) / (self.step - step) - (now - self.heard))


@dataclass(frozen=True)
class Ended:
    """A trial that has ended. ``state`` is done if it succeeded; else ``why`` is the sentence about its failure."""

    trial: Trial
    state: str
    took_s: float
    why: str = ""

    @property
    def failure(self) -> str:
        """Return the sentence about the failure, with the label of the trial in front."""
        return self.why if self.why.startswith(self.trial.label) else f"{self.trial.label}: {self.why}"


class Progress:
    """The progress of one run of a plan by this driver. ``estimate``: returns the seconds of a stage, before any stage
    has run. ``at_once``: number of trials that run at the same time."""

    def __init__(
        self,
        plan: Plan,
        estimate: Callable[[Stage], float],
        at_once: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.at_once = at_once
        self.running: dict[str, Running] = {}
        self.ended: list[Ended] = []
        self._clock = clock
        self._started = clock()
        self._trials = {trial.id: trial for trial in plan.trials}
        self._stages = {stage.id: stage for trial in plan.trials for stage in trial.stages}
        self._estimates = {stage_id: estimate(stage) for stage_id, stage in self._stages.items()}
        self._totals = {trial.id: sum(self._estimates[stage.id] for stage in trial.stages) for trial in plan.trials}
        self._states = dict.fromkeys(self._trials, "waiting")
        self._done: dict[
            str, list[float]
        ] = {}  # by pool of trials, of those that are done: estimated seconds, true ones

    # What happens

    def start(self, trial_id: str) -> None:
        """Record that a trial was started, perhaps again."""
        trial = self._trials[trial_id]
        self._states[trial_id] = "running"
        self.running[trial_id] = Running(trial, self._clock(), trial.stages[0], self._estimates)

    def report(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record a report of a stage of a running trial (``progress_event``). Reports after its end are ignored."""
        if run := self.running.get(trial_id):
            numbers = {name: result[name] for name in METRICS if name in result}
            run.report(self._stages[result["stage_id"]], result["step"], result["steps"], numbers, self._clock())

    def end(self, trial_id: str, state: str, why: str = "") -> None:
        """Record that a trial is ``done``, has ``failed``, or is ``waiting`` again. It may never have started."""
        run = self.running.pop(trial_id, None)
        took = self._clock() - run.since if run else 0.0
        self.ended.append(Ended(self._trials[trial_id], state, took, why))
        self._states[trial_id] = state
        if run and state == "done":
            done = self._done.setdefault(run.trial.pool, [0.0, 0.0])
            estimated, true = run.whole_work(self._clock())
            done[0] += estimated
            done[1] += true
        for blocked in self.plan.descendants({trial_id}) if state == "failed" else ():
            self._states[blocked] = "blocked"

    def note(self, trial_id: str, state: str) -> None:
        """Record that another driver runs a trial (``elsewhere``) or has ``done`` it."""
        self._states[trial_id] = state

    # What that amounts to

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of trials in each of ``STATES``."""
        found = Counter(self._states.values())
        return {state: found[state] for state in STATES}

    @property
    def finished(self) -> frozenset[str]:
        """Return the ids of all stages of the plan that have finished."""
        done = (trial for trial in self.plan.trials if self._states[trial.id] == "done")
        return self.plan.finished | {stage.id for trial in done for stage in trial.stages}

    @property
    def summary(self) -> str:
        """Say in a few words how far the sweep is."""
        counts = self.counts
        others = "".join(f", {counts[state]} {state}" for state in ("failed", "blocked") if counts[state])
        return f"{counts['done']} of {sum(counts.values())} trials done{others}"

    def stage_remaining_s(self, run: Running) -> float | None:
        """Return ``Running.remaining_s`` of now."""
        return run.remaining_s(self._clock())

    @property
    def remaining_s(self) -> float:
        """Return the seconds to the end of the sweep: estimates, corrected by the true times of each pool of trials. It
        takes as long as the longest chain of trials, and no less than all of them ``at_once``."""
        correction = self._corrections()
        total = 0.0
        finish: dict[str, float] = {}
        for trial in self.plan.trials:  # parents first
            if self._states[trial.id] in ("done", "failed", "blocked"):
                continue
            done_s = self.running[trial.id].done_s if trial.id in self.running else 0.0
            own = (self._totals[trial.id] - done_s) * correction[trial.pool]
            finish[trial.id] = own + max((finish.get(parent, 0.0) for parent in trial.parents), default=0.0)
            total += own
        return max(total / self.at_once, max(finish.values(), default=0.0))

    def _corrections(self) -> dict[str, float]:
        """Return the true seconds for each estimated second, by pool of trials: from those that are done, or while
        there are none, from those that run. A pool without any takes the ratio of the others, within limits, because a
        short trial is mostly its start."""
        seen: dict[str, list[float]] = {}
        for run in self.running.values():
            work = seen.setdefault(run.trial.pool, [0.0, 0.0])
            estimated, true = run.work
            work[0] += estimated
            work[1] += true
        seen = {kind: work for kind, work in (seen | self._done).items() if all(work)}
        estimated, true = (sum(work[i] for work in seen.values()) for i in (0, 1))
        borrowed = min(max(true / estimated, 1 / BORROWED_AT_MOST), BORROWED_AT_MOST) if seen else 1.0
        own = {kind: true / estimated for kind, (estimated, true) in seen.items()}
        return {trial.pool: own.get(trial.pool, borrowed) for trial in self.plan.trials}
