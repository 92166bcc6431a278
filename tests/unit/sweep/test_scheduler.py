"""The searcher hands out the trials of a plan in the order of the DAG, whatever finishes or fails, in any order."""

import json
import pickle
import random
import sys
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune import TuneError
from ray.tune.search import Searcher

import rayexp.execution
from rayexp.config import RunConfig
from rayexp.errors import StageError
from rayexp.stages import parse_stage
from rayexp.store.artifacts import Store, StoreError
from rayexp.store.leases import Lease, Leases
from rayexp.sweep import scheduler
from rayexp.sweep.plan import Plan, Trial
from rayexp.sweep.progress import Ended
from rayexp.sweep.scheduler import PlanSearcher, RolloutGroup, run_trial
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain

EXECUTION = RunConfig(store="somewhere")
STAGE = tiny_chain(StringTask(axis="composition")).pretrain


def searcher_of(trials, fail_fast=False):
    """Return the searcher of the only driver of an empty store."""
    store = Store(f"memory://{uuid4().hex}")
    return PlanSearcher(trials, EXECUTION, store, Leases(store.files), fail_fast)


def suggested(searcher: PlanSearcher, tune_id: str) -> dict[str, Any]:
    """Return the configuration of the suggested trial. Fail if there is none."""
    config = searcher.suggest(tune_id)
    assert isinstance(config, dict)
    return config


def a_trial(name, *parents):
    return Trial(name, "rollout", (STAGE,), parents, STAGE.label)


@st.composite
def trial_graphs(draw):
    """Draw up to ten trials, each with any earlier ones as parents."""
    trials: list[Trial] = []
    for i in range(draw(st.integers(1, 10))):
        parents = draw(st.sets(st.sampled_from(trials), max_size=3)) if trials else ()
        trials.append(a_trial(str(i), *sorted(parent.id for parent in parents)))
    return trials


def blocked_by(trials, failed):
    blocked: set[str] = set()
    for trial in trials:
        if (failed | blocked) & set(trial.parents):
            blocked.add(trial.id)
    return blocked


@given(trial_graphs(), st.integers(0, 2**32))
def test_any_order_of_completions_and_failures_obeys_the_graph(trials, seed):
    chance = random.Random(seed)
    searcher = searcher_of(trials)
    parents = {trial.id: set(trial.parents) for trial in trials}
    running: dict[str, str] = {}
    succeeded: set[str] = set()
    failed: set[str] = set()
    asked = 0
    while True:
        if running and chance.random() < 0.5:
            tune_id = chance.choice(sorted(running))
            error = chance.random() < 0.2
            searcher.on_trial_complete(tune_id, None if error else {"step": 1}, error=error)
            (failed if error else succeeded).add(running.pop(tune_id))
            continue
        asked += 1
        config = searcher.suggest(f"tune{asked:03}")
        started = {*succeeded, *failed, *running.values()}
        ready = {trial for trial, needs in parents.items() if needs <= succeeded} - started
        if config is None:
            assert running
            assert not ready
        elif config == Searcher.FINISHED:
            assert not running
            assert not ready
            break
        else:
            assert isinstance(config, dict)
            assert config["trial"] in ready
            running[f"tune{asked:03}"] = config["trial"]
    assert set(parents) - succeeded - failed == blocked_by(trials, failed)


def test_completions_of_unknown_trials_are_ignored():
    searcher = searcher_of([a_trial("a"), a_trial("b", "a")])
    searcher.on_trial_complete("never started")
    assert suggested(searcher, "1")["trial"] == "a"
    assert searcher.suggest("2") is None
    searcher.on_trial_complete("1", error=True)
    searcher.on_trial_complete("1")
    assert searcher.suggest("3") == Searcher.FINISHED


@pytest.mark.parametrize("why", ["its process died", f"{STAGE.label}, step 1: the reward is not finite"])
def test_a_failure_names_its_stage_once(why):
    failure = Ended(a_trial("a"), "failed", 1.0, why).failure
    assert failure.count(STAGE.label) == 1
    assert failure.endswith(why)


def test_a_trial_is_told_its_stages_and_how_to_run_them():
    chain = tiny_chain(StringTask(axis="composition"))
    plan = Plan.of("any", chain, ())
    searcher = searcher_of(plan.trials)
    config = suggested(searcher, "1")
    assert [parse_stage(text) for text in config["stages"]] == [chain.pretrain, chain.sft]
    assert config["pool"] == "train"
    told = RunConfig.model_validate_json(config["run_config"])
    assert told.model_copy(update={"lease": ""}) == EXECUTION
    assert Lease.parse(told.lease).work == plan.trials[0].id
    searcher.on_trial_complete("1")
    assert [parse_stage(text) for text in suggested(searcher, "2")["stages"]] == [chain.grpo, chain.evaluate]


def test_a_trial_that_another_driver_has_is_noted():
    store = Store(f"memory://{uuid4().hex}")
    noted = []
    with Leases(store.files) as ours, Leases(store.files) as theirs:
        assert suggested(PlanSearcher([a_trial("a")], EXECUTION, store, theirs), "1")["trial"] == "a"
        searcher = PlanSearcher(
            [a_trial("a")], EXECUTION, store, ours, note=lambda trial, state: noted.append((trial, state))
        )
        assert searcher.suggest("1") is None
    assert noted == [("a", "elsewhere")]


@pytest.mark.parametrize(
    "result", [{"not_shared": "store is 'x', which ..."}, {"lease_lost": "a is no longer leased to us"}]
)
def test_a_store_that_is_not_shared_ends_the_sweep_after_the_first_trial(result):
    """Include a trial that found leases of others in a store of its own. This driver holds the lease that it missed."""
    searcher = searcher_of([a_trial("a"), a_trial("b")])
    assert suggested(searcher, "1")["trial"] == "a"
    searcher.on_trial_complete("1", result)
    assert searcher.stopped
    assert next(iter(result.values())) in searcher.unshared
    assert searcher.suggest("2") == Searcher.FINISHED


def test_a_trial_that_another_driver_took_over_waits_for_it():
    store = Store(f"memory://{uuid4().hex}")
    with Leases(store.files) as ours, Leases(store.files) as theirs:
        searcher = PlanSearcher([a_trial("a")], EXECUTION, store, ours)
        assert suggested(searcher, "1")["trial"] == "a"
        ours.release("a")
        assert theirs.take("a")
        searcher.on_trial_complete("1", {"lease_lost": "the driver THEIRS has it"})
        assert not searcher.stopped
        assert searcher.suggest("2") is None


def test_a_placement_group_has_a_name_that_is_not_compared():
    """Compare groups without names. Otherwise a trial would not get the warm processes of the one before."""
    one, other = (RolloutGroup([{}, {"CPU": 0.5}, {"CPU": 0.5}]) for _ in range(2))
    assert one == other == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(other)
    assert one != RolloutGroup([{}, {"CPU": 0.5}])


def test_what_cannot_be_imported_on_a_worker_is_recorded_like_every_failure(tmp_path, monkeypatch):
    searcher = searcher_of([Trial(STAGE.id, "train", (STAGE,), (), STAGE.label)])
    store = Store(str(tmp_path))
    run_config = EXECUTION.model_copy(update={"store": store.url}).model_dump_json()
    monkeypatch.setitem(sys.modules, "rayexp.execution.supervised", None)
    monkeypatch.delattr(rayexp.execution, "supervised", raising=False)
    with pytest.raises(StageError, match=r"ModuleNotFoundError: .*rayexp\.execution\.supervised"):
        run_trial({**suggested(searcher, "one"), "run_config": run_config})
    record = json.loads(store.files.read(f"work/{STAGE.id}/failure.json"))
    assert record["label"] == STAGE.label
    assert "supervised" in record["error"]


def test_the_reason_is_said_that_tune_has_wrapped(monkeypatch):
    def fit(tuner):
        try:
            try:
                raise StoreError("the store is gone") from OSError("gone")
            except StoreError:
                raise TuneError("Traceback (most recent call last): ...") from None
        except TuneError as error:
            raise TuneError("inspect the previous error messages") from error

    monkeypatch.setattr(tune.Tuner, "__init__", lambda tuner, *_, **__: None)
    monkeypatch.setattr(tune.Tuner, "fit", fit)
    store = Store(f"memory://{uuid4().hex}")
    with pytest.raises(StageError, match=r"^the store is gone$"):
        scheduler.run(Plan.of("demo", [STAGE], ()), RunConfig(store=store.url, max_concurrent=1))
