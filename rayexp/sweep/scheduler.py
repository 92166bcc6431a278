"""The plan as one Ray Tune experiment: a searcher hands out a trial when the trials it builds on have finished."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune import PlacementGroupFactory, TuneError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group

from rayexp.config import RunConfig
from rayexp.distributed.rpc import unique
from rayexp.distributed.saving import ask_to_save
from rayexp.errors import StageError, sentence
from rayexp.store.artifacts import Store
from rayexp.store.leases import SHARED, Leases, NotSharedError
from rayexp.sweep import preflight
from rayexp.sweep.failures import why_failed
from rayexp.sweep.plan import Plan, Trial
from rayexp.sweep.progress import Progress
from rayexp.sweep.trackers import Trackers
from rayexp.sweep.trial import run_stages, trial_config

log = logging.getLogger(__name__)

#: Exceptions of Ray and Tune that wrap the reason why a sweep ended.
WRAPPERS = (RayError, TuneError)
#: Seconds between two looks at a trial that another driver is running.
SECONDS_BETWEEN_LOOKS = 2.0


@dataclass
class Outcome:
    """The end of a run of a plan: one sentence for each trial that failed, and the ids of those that did not run."""

    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)


def run(
    plan: Plan,
    run_config: RunConfig,
    progress: Progress | None = None,
    views: Sequence[Callable[[], None]] = (),
    trackers: Trackers | None = None,
    fail_fast: bool = False,
) -> Outcome:
    """Run every unfinished stage of the plan. A failed trial blocks only its descendants; with ``fail_fast`` nothing
    else is started, and running trials are stopped. ``progress`` is kept up to date, and each of its ``views`` is
    called about ten times a second. Raises NotSharedError after the first trial whose process has another store than
    this driver."""
    if not plan.trials:
        return Outcome()
    store = Store.of(run_config)
    progress = progress or Progress(plan, lambda stage: 0.0)
    trackers = trackers or Trackers()
    with Leases(store.files) as leases, TemporaryDirectory(prefix="rayexp-tune-") as folder:
        searcher = PlanSearcher(plan.trials, run_config, store, leases, fail_fast, progress.note)
        tuner = tune.Tuner(
            tune.with_resources(run_trial, lambda config: _resources(config, run_config)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,  # a trial's process, and what it keeps warm, serves the next trial of its kind
                max_concurrent_trials=preflight.concurrency(plan, run_config),
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.config["name"],
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,  # Tune's own notes: the store is what a sweep goes on from
                failure_config=tune.FailureConfig(max_failures=run_config.worker_failures),
                callbacks=[TuneEvents(progress, views, trackers), *tracker_callbacks(trackers)],
                stop=_StopWhen(searcher),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            ask_to_save(leases.driver, searcher.running)
            raise
        except WRAPPERS as error:
            raise StageError(sentence(_reason(error))) from error
        if searcher.unshared:
            raise NotSharedError(searcher.unshared)
        store.tidy()
    finished = store.finished_ids([stage.id for stage in plan.to_run])
    missing = {trial.id for trial in plan.trials if not finished.issuperset(stage.id for stage in trial.stages)}
    failed = {each.trial.id: each.failure for each in progress.ended if each.state == "failed"}
    failed = {trial: failure for trial, failure in failed.items() if trial in missing}
    return Outcome(failed, missing - failed.keys())


def _reason(error: BaseException) -> BaseException:
    """Return the innermost exception that an exception of Ray or Tune wraps, or itself."""
    while isinstance(error, WRAPPERS) and (inner := error.__cause__ or error.__context__):
        error = inner
    return error


def run_trial(config: dict[str, Any]) -> None:
    """Run one trial in a process of its own, which reports to Tune."""
    run_stages(config, tune.report, lambda: [TuneReportCallback()])


class NamedGroup(PlacementGroupFactory):
    """Bundles whose placement group has a name in the dashboard. Tune does not compare the names, so a trial still
    takes over the group, with its warm processes, of an earlier trial with the same bundles."""

    role = "trial"

    def to_placement_group(self) -> PlacementGroup:
        return placement_group(self.bundles, strategy=self.strategy, name=unique(self.role))


class TrainGroup(NamedGroup):
    role = "train"


class RolloutGroup(NamedGroup):
    role = "rollout"


def _resources(config: dict[str, Any], run_config: RunConfig) -> PlacementGroupFactory:
    """Return the bundles that a trial holds. A small training trial is one process. A larger one reserves only a token
    resource of the head: Ray Train makes its own placement group, which would wait for ever for CPUs that the trial
    itself reserved. A rollout trial is one group, so that all of it starts together, on one node if its actors have to
    share one."""
    if config["in_process"]:
        return TrainGroup([{"CPU": run_config.train_cpus}])
    if config["pool"] == "train":
        return TrainGroup([{"node:__internal_head__": 0.001}])
    strategy = "STRICT_PACK" if preflight.on_one_node(run_config) else "PACK"
    return RolloutGroup([{}, *preflight.rollout_bundles(run_config)], strategy)


class PlanSearcher(Searcher):
    """A searcher for Tune that hands out the trials of a plan: each when its parents have finished and no other driver
    has it. ``failed``: trials that failed for good."""

    def __init__(
        self,
        trials: Iterable[Trial],
        run_config: RunConfig,
        store: Store,
        leases: Leases,
        fail_fast: bool = False,
        note: Callable[[str, str], None] = lambda trial, state: None,
    ) -> None:
        super().__init__()  # without a metric: a trial that only measures reports nothing
        self.failed: set[str] = set()
        self.unshared = ""  # the sentence of a trial whose process has another store
        self._trials = {trial.id: trial for trial in trials}
        self._execution = run_config
        self._store = store
        self._leases = leases
        self._fail_fast = fail_fast
        self._note = note
        self._graph = TopologicalSorter({trial.id: trial.parents for trial in self._trials.values()})
        self._graph.prepare()
        self._ready = dict.fromkeys(self._graph.get_ready())
        self._elsewhere: dict[str, float] = {}  # when to look again
        self._running: dict[str, str] = {}

    @property
    def stopped(self) -> bool:
        """Return whether no further trial may start, after a failure with ``fail_fast`` or if a store is not shared."""
        return bool(self.unshared) or (self._fail_fast and bool(self.failed))

    @property
    def running(self) -> set[str]:
        """Return the trials that this driver is running."""
        return set(self._running.values())

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return a trial that can run now, None while a running trial may make one ready, or FINISHED."""
        for trial in list(self._ready):
            if self.stopped:
                break
            if self._elsewhere.get(trial, 0.0) > time.monotonic():
                continue
            if config := self._claim(trial):
                self._running[trial_id] = trial
                return config
        return None if self._running or (self._ready and not self.stopped) else Searcher.FINISHED

    def _claim(self, trial_id: str) -> dict[str, Any] | None:
        """Return the trial's configuration if this driver gets the lease on it."""
        trial = self._trials[trial_id]
        lease = self._leases.take(trial_id)
        if lease is None:
            if trial_id not in self._elsewhere:
                holder = self._leases.holder(trial_id)
                log.warning("skipping %s for now, because the driver %s is running it", trial.label, holder)
            self._note(trial_id, "elsewhere")
            self._elsewhere[trial_id] = time.monotonic() + SECONDS_BETWEEN_LOOKS
            return None
        del self._ready[trial_id]
        ids = [stage.id for stage in trial.stages]
        if self._store.finished_ids(ids).issuperset(ids):  # by another driver, since this one made its plan
            self._leases.release(trial_id)
            self._release_children(trial_id)
            self._note(trial_id, "done")
            return None
        return trial_config(trial, self._execution.model_copy(update={"lease": str(lease)}))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Make the children of a finished trial ready; those of a failed one stay blocked."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        holder = self._leases.holder(trial)
        self._leases.release(trial)
        if result and "not_shared" in result:
            self.unshared = result["not_shared"]
        elif result and "lease_lost" in result:
            log.warning("%s", result["lease_lost"])
            if holder == self._leases.driver:  # nobody took it: the trial looked into a store with leases of its own
                cause = f"it is not the store of the trial {trial} ({result['lease_lost']})"
                self.unshared = f"store={self._store.url!r} is not shared: {cause}; {SHARED}"
            self._ready[trial] = None
        elif error or (result and "failed" in result):
            self.failed.add(trial)
        else:
            self._release_children(trial)

    def _release_children(self, trial: str) -> None:
        self._graph.done(trial)
        self._ready |= dict.fromkeys(self._graph.get_ready())

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune keeps a pickle of what it was started with; this has locks and files, and is of no use
        later."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a resubmitted sweep plans again from the store."""

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("Tune cannot restore a sweep; run the same command again, which continues from the store")


class TuneEvents(tune.Callback):
    """A callback that hands Tune's events to the progress and the trackers, and calls the views after each turn."""

    def __init__(self, progress: Progress, views: Sequence[Callable[[], None]], trackers: Trackers) -> None:
        self._progress = progress
        self._views = views
        self._trackers = trackers

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.start(trial.config["trial"])
        self._trackers.add_folder(Path(trial.local_path))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "stage_id" in result:
            self._progress.report(trial.config["trial"], result)
            if run := self._progress.running.get(trial.config["trial"]):
                self._trackers.log(run.stage, self._progress.plan, run.step, run.numbers)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if "lease_lost" in result:
            self._end(trial.config["trial"], "waiting", result["lease_lost"])
        elif why := result.get("failed") or result.get("not_shared"):
            self._end(trial.config["trial"], "failed", why)
        else:
            self._end(trial.config["trial"], "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a failure, perhaps of a trial whose process could not be started."""
        self._end(trial.config["trial"], "failed", why_failed(trial.pickled_error_file, trial.error_file))

    def _end(self, trial_id: str, state: str, why: str = "") -> None:
        if run := self._progress.running.get(trial_id):
            self._trackers.end_trial(run.trial, self._progress.plan)
        self._progress.end(trial_id, state, why)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for view in self._views:
            view()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune keeps a pickle of what it was started with; this has a terminal, and is of no use
        later."""
        return {}


class _StopWhen(tune.Stopper):
    """A stopper that ends the whole experiment when the searcher is over."""

    def __init__(self, searcher: PlanSearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.stopped


def tracker_callbacks(trackers: Trackers) -> list[tune.Callback]:
    """Return the callbacks of the trackers whose files Tune writes."""
    made = {"csv": CSVLoggerCallback, "json": JsonLoggerCallback, "tensorboard": TBXLoggerCallback}
    return [made[name]() for name in trackers.tunes]
