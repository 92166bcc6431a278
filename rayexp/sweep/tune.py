"""The plan as one Ray Tune experiment: a searcher hands out a trial when the trials it builds on have finished."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from rayexp.spec import GRPO, Evaluate, Execution, parse_stage
from rayexp.store import Store
from rayexp.sweep import preflight
from rayexp.sweep.plan import Plan, Trial

SECONDS_BETWEEN_REPORTS = 2.0


@dataclass
class Outcome:
    """How a run of a plan ended: error text by trial id, and the ids of trials that could therefore not run."""

    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)


def run(plan: Plan, execution: Execution, callbacks: Sequence[tune.Callback] = ()) -> Outcome:
    """Run every unfinished stage of the plan. A trial that fails blocks its descendants and nothing else."""
    if not plan.trials:
        return Outcome()
    store = Store(execution.store)
    searcher = PlanSearcher(plan.trials, execution)
    experiment = f"tune-{time.time_ns():x}"
    tuner = tune.Tuner(
        tune.with_resources(run_trial, lambda config: _resources(config["kind"], execution)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,  # a trial's process, and what it keeps warm, serves the next trial of its kind
            max_concurrent_trials=preflight.concurrency(plan, execution),
            trial_name_creator=lambda trial: trial.config["trial"],
            trial_dirname_creator=lambda trial: trial.config["trial"],
        ),
        run_config=tune.RunConfig(
            name=experiment,
            storage_path=f"{store.root}/ray",
            storage_filesystem=store.arrow,
            failure_config=tune.FailureConfig(max_failures=execution.worker_failures),
            callbacks=list(callbacks),
            verbose=0,
        ),
    )
    results = tuner.fit()
    store.remove(f"ray/{experiment}")
    errors = {str(result.config["trial"]): str(result.error) for result in results if result.error and result.config}
    return Outcome(errors, plan.descendants(errors))


def run_trial(config: dict[str, Any]) -> None:
    """What a trial's process does."""
    from rayexp.stages import grpo, supervised  # torch and transformers, which the driver does not need

    execution = Execution.model_validate_json(config["execution"])
    stages = [parse_stage(text) for text in config["stages"]]
    if config["kind"] == "supervised":
        supervised.run(stages, execution, callbacks=[TuneReportCallback()])
    else:
        first, *evaluations = stages
        assert isinstance(first, GRPO)
        grpo.run(first, [stage for stage in evaluations if isinstance(stage, Evaluate)], execution, _reporter())


def _reporter() -> Callable[[dict[str, Any]], None]:
    """Tune's report, now and then: each one waits for the driver, and a GRPO step can be faster than that."""
    spoken = 0.0

    def report(metrics: dict[str, Any]) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= SECONDS_BETWEEN_REPORTS or metrics["step"] == metrics["steps"]:
            tune.report(metrics)
            spoken = time.monotonic()

    return report


def _resources(kind: str, execution: Execution) -> PlacementGroupFactory:
    """A supervised trial holds nothing but a place on the head: Ray Train makes its own placement group, and a trial
    that held CPUs would wait for itself. A GRPO trial is one group, so it starts whole or not at all."""
    if kind == "supervised":
        return PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    return PlacementGroupFactory([{}, *preflight.grpo_bundles(execution)])


class PlanSearcher(Searcher):
    """Not a search at all: hands out the trials of a plan, each when its parents have finished."""

    def __init__(self, trials: Sequence[Trial], execution: Execution) -> None:
        super().__init__(metric="step", mode="max")
        self._waiting = {trial.id: set(trial.parents) for trial in trials}
        self._children: dict[str, list[str]] = {}
        for trial in trials:
            for parent in trial.parents:
                self._children.setdefault(parent, []).append(trial.id)
        self._ready = [trial.id for trial in trials if not trial.parents]
        self._running: dict[str, str] = {}
        self._configs = {
            trial.id: {
                "trial": trial.id,
                "kind": trial.kind,
                "stages": [stage.model_dump_json() for stage in trial.stages],
                "execution": execution.model_dump_json(),
            }
            for trial in trials
        }

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial that is ready; None while only running ones can make more ready; FINISHED when none ever will be."""
        if self._ready:
            chosen = self._ready.pop(0)
            self._running[trial_id] = chosen
            return self._configs.pop(chosen)
        return None if self._running else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release the children of a finished trial; those of a failed one stay where they are."""
        done = self._running.pop(trial_id, None)
        if done is None or error:
            return
        for child in self._children.get(done, []):
            self._waiting[child].discard(done)
            if not self._waiting[child]:
                self._ready.append(child)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a resubmitted sweep plans again from the store."""

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a plan is not restored; run the sweep again, which plans from the store")
