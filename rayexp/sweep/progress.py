"""What is known of a sweep while it runs: the state of each trial, how far each stage is, how long the rest will take.

Tune's events come in through ``rayexp.sweep.watch``; a view reads a ``Progress`` whenever it likes and changes nothing.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayexp.metrics import METRICS
from rayexp.spec import Stage
from rayexp.sweep.plan import Plan, Trial, flops

STATES = ("done", "running", "waiting", "elsewhere", "failed", "blocked")


@dataclass
class Running:
    """A trial that runs. ``stage`` is its first one until it reports; ``steps`` is 0 until then."""

    trial: Trial
    since: float
    stage: Stage
    step: int = 0
    steps: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
    heard: float = 0.0
    _first: tuple[float, int] = (0.0, 0)  # of the stage's reports: when, and of which step
    _begun: tuple[float, float] = (0.0, 0.0)  # the trial's first report: when, and how many operations were done

    def report(self, stage: Stage, step: int, steps: int, numbers: dict[str, float], now: float) -> None:
        """Take in what the stage says of itself."""
        first_report = not self.steps
        if first_report or stage is not self.stage:
            self._first = (now, step)
        self.stage, self.step, self.steps, self.numbers, self.heard = stage, step, steps, numbers, now
        if first_report:
            self._begun = (now, self.flops)

    @property
    def flops(self) -> float:
        """Of its trial's estimated operations, those that are done."""
        before = self.trial.stages[: self.trial.stages.index(self.stage)]
        return sum(map(flops, before)) + (flops(self.stage) * self.step / self.steps if self.steps else 0.0)

    @property
    def work(self) -> tuple[float, float]:
        """Operations between its first report and its last, and the seconds: how long its start took says nothing."""
        when, done = self._begun
        return (self.flops - done, self.heard - when) if self.steps else (0.0, 0.0)

    def remaining_s(self, now: float) -> float | None:
        """Seconds to the last step of the stage, at the pace of its reports; None before there are two."""
        when, step = self._first
        if self.step <= step:
            return None
        return max(0.0, (self.steps - self.step) * (self.heard - when) / (self.step - step) - (now - self.heard))


@dataclass(frozen=True)
class Ended:
    """A trial that ended: well if ``state`` is done; ``why`` is the sentence of one that failed or was given up."""

    trial: Trial
    state: str
    took_s: float
    why: str = ""


class Progress:
    """Of one run of a plan, by this driver. ``at_once``: how many trials run at the same time."""

    def __init__(self, plan: Plan, at_once: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan
        self.at_once = at_once
        self.running: dict[str, Running] = {}
        self.ended: list[Ended] = []
        self._clock = clock
        self._started = clock()
        self._trials = {trial.id: trial for trial in plan.trials}
        self._stages = {stage.id: stage for trial in plan.trials for stage in trial.stages}
        self._flops = {trial.id: trial.flops for trial in plan.trials}
        self._states = dict.fromkeys(self._trials, "waiting")
        self._paces: dict[str, list[float]] = {}  # by kind of trial, of those that are done: operations, seconds

    # What happens

    def start(self, trial_id: str) -> None:
        """A trial was started, perhaps once more."""
        trial = self._trials[trial_id]
        self._states[trial_id] = "running"
        self.running[trial_id] = Running(trial, self._clock(), trial.stages[0])

    def report(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take in what a stage of a running trial reported (``journal.report``); what comes after the end is late."""
        if run := self.running.get(trial_id):
            numbers = {name: result[name] for name in METRICS if name in result}
            run.report(self._stages[result["stage_id"]], result["step"], result["steps"], numbers, self._clock())

    def end(self, trial_id: str, state: str, why: str = "") -> None:
        """Take in that a trial is ``done``, has ``failed``, or is ``waiting`` again. It may never have started."""
        run = self.running.pop(trial_id, None)
        took = self._clock() - run.since if run else 0.0
        self.ended.append(Ended(self._trials[trial_id], state, took, why))
        self._states[trial_id] = state
        if run and state == "done":
            pace = self._paces.setdefault(run.trial.kind, [0.0, 0.0])
            pace[0] += self._flops[trial_id]
            pace[1] += took
        for blocked in self.plan.descendants({trial_id}) if state == "failed" else ():
            self._states[blocked] = "blocked"

    def note(self, trial_id: str, state: str) -> None:
        """Another driver runs a trial (``elsewhere``) or has ``done`` it, or a trial is ``waiting`` for this one."""
        self._states[trial_id] = state

    # What that amounts to

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials in each of ``STATES``."""
        found = Counter(self._states.values())
        return {state: found[state] for state in STATES}

    def stage_remaining_s(self, run: Running) -> float | None:
        """See ``Running.remaining_s``."""
        return run.remaining_s(self._clock())

    @property
    def remaining_s(self) -> tuple[float, bool]:
        """Seconds to the end of the sweep, and whether that is all; if not, some kind of trial that is still to run was
        never seen at work, and it takes longer.

        What is left is measured in estimated operations and the pace of each kind of trial, in those for a second of
        one trial. It takes as long as the longest chain of trials, and no less than all of them ``at_once``.
        """
        paces = self._pace_by_kind()
        total, complete = 0.0, True
        finish: dict[str, float] = {}
        for trial in self.plan.trials:  # parents first
            if self._states[trial.id] in ("done", "failed", "blocked"):
                continue
            if not paces.get(trial.kind):
                complete = False
                continue
            done = self.running[trial.id].flops if trial.id in self.running else 0.0
            own = (self._flops[trial.id] - done) / paces[trial.kind]
            finish[trial.id] = own + max((finish.get(parent, 0.0) for parent in trial.parents), default=0.0)
            total += own
        return max(total / self.at_once, max(finish.values(), default=0.0)), complete

    def _pace_by_kind(self) -> dict[str, float]:
        """Operations a second of one trial: of those that are done, or while there are none, of those that run."""
        running: dict[str, list[float]] = {}
        for run in self.running.values():
            pace = running.setdefault(run.trial.kind, [0.0, 0.0])
            work, seconds = run.work
            pace[0] += work
            pace[1] += seconds
        return {kind: work / seconds for kind, (work, seconds) in (running | self._paces).items() if seconds}
