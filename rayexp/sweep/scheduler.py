"""The plan as one Ray Tune experiment: a searcher hands out a trial when the trials it builds on have finished."""

import logging
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group

from rayexp.distributed.rpc import unique
from rayexp.distributed.saving import ask_to_save
from rayexp.errors import PermanentError, StageError, sentence
from rayexp.spec import GRPO, Evaluate, RunConfig, canonical_json, parse_stage
from rayexp.store.artifacts import FAILURE, Store
from rayexp.store.filesystem import StoreError
from rayexp.store.leases import LeaseLostError, Leases, NotSharedError
from rayexp.sweep import preflight
from rayexp.sweep.plan import Plan, Trial
from rayexp.sweep.watch import DIED, why_failed
from rayexp.telemetry import logs

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 2.0
#: Seconds between two looks at a trial that another driver is running.
SECONDS_BETWEEN_LOOKS = 2.0


@dataclass
class Outcome:
    """How a run of a plan ended: one sentence for each trial that failed, and the ids of those that did not run."""

    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)


def run(
    plan: Plan,
    run_config: RunConfig,
    callbacks: Sequence[tune.Callback] = (),
    fail_fast: bool = False,
    note: Callable[[str, str], None] = lambda trial, state: None,
) -> Outcome:
    """Run every unfinished stage of the plan. A trial that fails blocks its descendants and nothing else, unless
    ``fail_fast``: then nothing else is started, and what runs is stopped. Raises NotSharedError after the first trial
    whose process has another store than this driver. ``note`` hears of trials that Tune does not
    see, because other drivers run them; see ``Progress.note``."""
    if not plan.trials:
        return Outcome()
    store = Store.of(run_config)
    with Leases(store.files) as leases, TemporaryDirectory(prefix="rayexp-tune-") as folder:
        searcher = PlanSearcher(plan.trials, run_config, store, leases, fail_fast, note)
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
                callbacks=[_Failures(searcher), *callbacks],
                stop=_StopWhen(searcher),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            ask_to_save(leases.driver, searcher.running)
            raise
        if searcher.unshared:
            raise NotSharedError(searcher.unshared)
        store.tidy()
    finished = store.finished_ids([stage.id for stage in plan.to_run])
    missing = {trial.id for trial in plan.trials if not finished.issuperset(stage.id for stage in trial.stages)}
    failed = {trial: why for trial, why in searcher.failed.items() if trial in missing}
    return Outcome(failed, missing - failed.keys())


def run_trial(config: dict[str, Any]) -> None:
    """What a trial's process does. What would fail again is its result; what may pass by itself is its exception."""
    logs.configure_worker_logging()
    run_config = RunConfig.model_validate_json(config["execution"])
    stages = [parse_stage(text) for text in config["stages"]]
    try:
        from rayexp.execution import grpo, supervised  # torch and transformers, which the driver does not need

        if config["in_process"]:
            supervised.run_in_process(stages, run_config, _reporter())
        elif config["kind"] == "supervised":
            supervised.run(stages, run_config, callbacks=[TuneReportCallback()])
        else:
            first, *evaluations = stages
            assert isinstance(first, GRPO)
            grpo.run(first, [stage for stage in evaluations if isinstance(stage, Evaluate)], run_config, _reporter())
    except NotSharedError as error:
        tune.report({"step": 0, "not_shared": sentence(error)})
    except LeaseLostError as error:
        tune.report({"step": 0, "lease_lost": sentence(error)})
    except PermanentError as error:
        _record_failure(error, config["trial"], stages[0].label, run_config)
        tune.report({"step": 0, "failed": sentence(error)})
    except Exception as error:
        _record_failure(error, config["trial"], stages[0].label, run_config)
        raise StageError(sentence(error)) from error
    else:
        with suppress(StoreError):
            Store.of(run_config).files.remove_file(_failure_file(config["trial"]))  # of an attempt before this one


def _record_failure(error: Exception, trial: str, label: str, run_config: RunConfig) -> None:
    """Leave the whole story in the store, where the sentence for people does not say enough."""
    story = {"traceback": "".join(traceback.format_exception(error)), "time": time.time()}
    record = {"label": label, "error": sentence(error), **story}
    with suppress(StoreError):  # which may be what failed
        Store.of(run_config).files.write(_failure_file(trial), canonical_json(record).encode())


def _failure_file(trial: str) -> str:
    return f"work/{trial}/{FAILURE}"


def _reporter() -> Callable[[dict[str, Any]], None]:
    """Tune's report, now and then: each one waits for the driver, and a GRPO step can be faster than that."""
    spoken = 0.0

    def report(metrics: dict[str, Any]) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= SECONDS_BETWEEN_REPORTS or metrics["step"] == metrics["steps"]:
            tune.report(metrics)
            spoken = time.monotonic()

    return report


class NamedGroup(PlacementGroupFactory):
    """Bundles whose placement group the dashboard shows by name. The name is no part of what Tune compares, so that a
    trial still takes over the group, and the warm processes, of one that asked for the same."""

    role = "trial"

    def to_placement_group(self) -> PlacementGroup:
        return placement_group(self.bundles, strategy=self.strategy, name=unique(self.role))


class SupervisedGroup(NamedGroup):
    role = "supervised"


class GRPOGroup(NamedGroup):
    role = "grpo"


def _resources(config: dict[str, Any], run_config: RunConfig) -> PlacementGroupFactory:
    """A small supervised trial is one process. A larger one holds nothing but a place on the head: Ray Train makes its
    own placement group, and a trial that held CPUs would wait for itself. A GRPO trial is one group, so it starts whole
    or not at all, and on one node where its actors have to share one."""
    if config["in_process"]:
        return SupervisedGroup([{"CPU": run_config.train_cpus}])
    if config["kind"] == "supervised":
        return SupervisedGroup([{"node:__internal_head__": 0.001}])
    strategy = "STRICT_PACK" if preflight.on_one_node(run_config) else "PACK"
    return GRPOGroup([{}, *preflight.grpo_bundles(run_config)], strategy)


class PlanSearcher(Searcher):
    """Not a search at all: hands out the trials of a plan, each when its parents have finished and no other driver has
    it. ``failed`` has a sentence for each trial that failed for good."""

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
        self.failed: dict[str, str] = {}
        self.unshared = ""  # the sentence of a trial whose process has another store
        self._trials = {trial.id: trial for trial in trials}
        self._execution = run_config
        self._store = store
        self._leases = leases
        self._fail_fast = fail_fast
        self._note = note
        self._waiting = {trial.id: set(trial.parents) for trial in self._trials.values()}
        self._children: dict[str, list[str]] = {}
        for trial in self._trials.values():
            for parent in trial.parents:
                self._children.setdefault(parent, []).append(trial.id)
        self._ready = dict.fromkeys(trial.id for trial in self._trials.values() if not trial.parents)
        self._elsewhere: dict[str, float] = {}  # when to look again
        self._running: dict[str, str] = {}

    @property
    def stopped(self) -> bool:
        """Return whether nothing more is to run: a failure with ``fail_fast``, or a store that is not shared."""
        return bool(self.unshared) or (self._fail_fast and bool(self.failed))

    @property
    def running(self) -> set[str]:
        """The trials that this driver is running."""
        return set(self._running.values())

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial that can run now; None while only others can make one ready; FINISHED when none ever will be."""
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
        """The trial's configuration, if it is this driver's to run."""
        trial = self._trials[trial_id]
        lease = self._leases.take(trial_id)
        if lease is None:
            if trial_id not in self._elsewhere:
                log.warning("%s is being run by the driver %s", trial.label, self._leases.holder(trial_id))
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
        return {
            "trial": trial_id,
            "name": trial.name,
            "kind": trial.kind,
            "in_process": preflight.in_process(trial, self._execution),
            "stages": [stage.model_dump_json() for stage in trial.stages],
            "execution": self._execution.model_copy(update={"lease": str(lease)}).model_dump_json(),
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release the children of a finished trial; those of a failed one stay where they are."""
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
                self.unshared = (
                    f"store is {self._store.url!r}, of which a trial has another one: {result['lease_lost']}"
                )
            self._ready[trial] = None
        elif error:
            self.fail(trial, DIED)
        elif result and "failed" in result:
            self.fail(trial, result["failed"])
        else:
            self._release_children(trial)

    def fail(self, trial: str, why: str) -> None:
        """Keep a sentence about a trial that failed; it begins with the trial's label."""
        label = self._trials[trial].label
        self.failed[trial] = why if why.startswith(label) else f"{label}: {why}"

    def _release_children(self, trial: str) -> None:
        for child in self._children.get(trial, []):
            self._waiting[child].discard(trial)
            if not self._waiting[child]:
                self._ready[child] = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickle of what it was started with; this has locks and files, and is of no use later."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a resubmitted sweep plans again from the store."""

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a plan is not restored; run the sweep again, which plans from the store")


class _Failures(tune.Callback):
    """Tells the searcher why a trial failed, which Tune itself does not."""

    def __init__(self, searcher: PlanSearcher) -> None:
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._searcher.fail(trial.config["trial"], why_failed(trial))

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickle of what it was started with; this is of no use later."""
        return {}


class _StopWhen(tune.Stopper):
    """Ends the whole experiment when the searcher says that it is over."""

    def __init__(self, searcher: PlanSearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.stopped
