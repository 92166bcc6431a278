"""The text of ``--plan``: states, measured or assumed costs, time on the machines, and savings by sharing."""

import json
import os
import shutil

import pytest

from rayexp import api
from rayexp.cli import run as sweep
from rayexp.config import RunConfig
from rayexp.distributed import runtime
from rayexp.experiment import Experiment
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain
from rayexp.store.artifacts import Store
from rayexp.store.index import StoreIndex
from rayexp.store.leases import EXPIRY_S, Leases
from rayexp.store.provenance import source
from rayexp.sweep.cost import ASSUMED, CostModel, makespan
from rayexp.sweep.placement import nodes_of
from rayexp.sweep.plan import Plan
from rayexp.sweep.preview import ClusterResources, other_code, render_plan, states
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import OPTIMISER, tiny_chain
from tests.fixtures.simulated_study import published, study_stages

CPU = RunConfig().resolve(num_gpus=0)
STAGES = study_stages(seeds=(0,), kl_betas=(0.1, 1.0), ood_ratios=(0.0, 0.01))
PRETRAIN = next(stage for stage in STAGES if isinstance(stage, Pretrain))
TWO_CORES = ClusterResources(nodes_of([{"CPU": 2.0}]), "a test")
CHAIN = tiny_chain(StringTask(axis="composition"))


def record(seconds: float, **run_config: object) -> dict[str, object]:
    """Return the provenance of a stage that took ``seconds``."""
    return {"duration_s": seconds, "run_config": json.loads(CPU.model_dump_json()) | run_config}


def fail(store: Store, trial: str, label: str = "") -> None:
    about = {"label": label, "error": f"{label}: out of luck", "time": 1.0}
    store.files.write(f"work/{trial}/failure.json", json.dumps(about).encode())


def cost_model(store: Store) -> CostModel:
    """Return the cost model of a plan with all finished stages of the store."""
    return CostModel.of(StoreIndex(store), CPU, store.finished_ids())


# States


def test_states_tell_failed_from_blocked():
    plan = Plan.of("demo", STAGES, [STAGES[0].id])
    first, second = [trial for trial in plan.trials if trial.pool == "train"]
    found = states(plan, {first.id}, set())
    assert found[STAGES[0].id] == "cached"
    for trial in plan.trials:
        behind = "failed" if trial == first else "blocked" if first.id in trial.parents else "to run"
        assert {found[stage.id] for stage in trial.stages} == {behind}
    assert states(plan, {first.id}, {first.id})[first.stages[0].id] == "running"
    assert set(states(plan, set(), {second.id}).values()) == {"cached", "to run", "running"}


def test_a_failure_is_told_with_its_reason(tmp_path):
    store = Store(str(tmp_path / "store"))
    plan = Plan.of("demo", STAGES, ())
    fail(store, plan.trials[0].id, plan.trials[0].label)
    text = render_plan(plan, StoreIndex(store), CPU, TWO_CORES)
    assert f"failed: {plan.trials[0].id}: {plan.trials[0].label}: out of luck" in text
    assert "blocked: built on a failed stage" in text
    assert "16 stages: 4 failed, 4 blocked, 8 to run" in text


def test_the_lease_of_a_living_driver_is_a_running_trial(tmp_path):
    store = Store(str(tmp_path / "store"))
    trial = Plan.of("demo", STAGES, ()).trials[0]
    with Leases(store.files) as leases:
        assert leases.take(trial.id)
        assert StoreIndex(store).running() == {trial.id}
        heart = tmp_path / "store" / "drivers" / leases.driver
        silent = heart.stat().st_mtime - 10 * EXPIRY_S
        leases._ended.set()  # no further beats
        leases._heart.join()
        os.utime(heart, (silent, silent))
        assert StoreIndex(store).running() == set()


# Costs


def test_time_is_measured_where_the_store_has_stages_that_are_alike(tmp_path):
    pretrain, measurement = PRETRAIN, STAGES[1]
    twice = pretrain.model_copy(update={"samples": 2 * pretrain.samples})
    store = published(tmp_path, [pretrain], record(7.0))
    estimates = cost_model(store)
    assert (estimates.cost(pretrain).seconds, estimates.cost(pretrain).measured) == (pytest.approx(7.0), 1)
    assert estimates.cost(twice).seconds == pytest.approx(14.0)
    assert estimates.cost(measurement).measured == 0
    assert estimates.cost(measurement).seconds == pytest.approx(
        measurement.flops / ASSUMED["cpu", "measure"].flop_per_s
    )


NO_MEASURES = [
    record(7.0, device="cuda"),
    record(7.0, train_workers=4),
    record(0.0),
    record(float("inf")),
    {"duration_s": 7.0},
    {"run_config": 1, "duration_s": []},
    {"duration_s": 7.0, "run_config": {"train_workers": "many"}},
    [],
]


@pytest.mark.parametrize("unlike", NO_MEASURES)
def test_stages_that_were_run_otherwise_or_do_not_say_how_are_no_measure(tmp_path, unlike):
    estimates = cost_model(published(tmp_path, STAGES[:1], unlike))
    assert estimates.cost(STAGES[0]).measured == 0


def test_a_decoder_of_another_size_is_no_measure(tmp_path):
    wide = PRETRAIN.decoder.model_copy(update={"width": 512, "ff_width": 1536})
    other = PRETRAIN.model_copy(update={"decoder": wide})
    estimates = cost_model(published(tmp_path, [other], record(7.0)))
    assert estimates.cost(other).measured == 1
    assert estimates.cost(STAGES[0]).measured == 0


def test_those_nearest_in_cost_are_believed(tmp_path):
    """Use a short and a long stage. Start-up weighs more in the short one, so it does not predict the long one."""
    short = [STAGES[0].model_copy(update={"samples": 100, "seed": seed}) for seed in range(20)]
    long = [STAGES[0].model_copy(update={"seed": 100 + seed}) for seed in range(9)]
    store = published(tmp_path / "a", short, record(50.0))
    for stage in long:
        folder = tmp_path / stage.id
        folder.mkdir()
        store.publish(stage, folder, record(7.0))
    estimates = cost_model(store)
    assert estimates.cost(STAGES[0]).seconds == pytest.approx(7.0)
    assert estimates.cost(short[0]).seconds == pytest.approx(50.0)


def test_more_cores_and_gpus_make_an_assumption_shorter():
    pretrain, grpo = STAGES[0], next(stage for stage in STAGES if isinstance(stage, GRPO))

    def seconds(stage, gpus=0.0, **settings):
        return CostModel(RunConfig(**settings).resolve(gpus)).cost(stage).seconds

    assert seconds(pretrain, train_cpus=4.0) == pytest.approx(seconds(pretrain) / 4)
    assert seconds(pretrain, gpus=1.0) < seconds(pretrain)
    assert ASSUMED["cpu", "rollout"].start_s < seconds(grpo, rollout_cpus=8.0) < seconds(grpo)


def test_storage_is_what_is_kept_and_what_checkpoints_need():
    estimates, plan = CostModel(CPU), Plan.of("demo", STAGES, ())
    parameters = PRETRAIN.decoder.parameters(64)
    assert 4 * parameters < estimates.cost(STAGES[0]).bytes < 4 * parameters + 20_000
    assert estimates.checkpoint_bytes(plan, 2) == 2 * 3 * 12 * parameters
    assert estimates.checkpoint_bytes(Plan.of("demo", STAGES, [stage.id for stage in STAGES]), 2) == 0
    critics = [stage.model_copy(update={"advantage": "critic"}) for stage in STAGES if isinstance(stage, GRPO)]
    assert estimates.checkpoint_bytes(Plan.of("demo", critics, ()), 2) == 2 * 2 * 3 * 12 * parameters


# The whole plan


def test_trials_run_side_by_side_as_soon_as_their_parents_have():
    """Plan two training trials of 4 stages, each the parent of two GRPO trials of 2. A stage takes a second."""
    plan = Plan.of("demo", STAGES, ())
    assert [len(trial.stages) for trial in plan.trials if trial.pool == "rollout"] == [2] * 4

    def span(at_once):
        return makespan(plan, lambda stages: float(len(list(stages))), at_once)

    assert (span(1), span(2), span(4), span(100)) == (16.0, 8.0, 6.0, 6.0)
    assert makespan(Plan.of("demo", STAGES, [stage.id for stage in STAGES]), lambda stages: 1.0, 2) == 0.0


def test_sharing_is_counted_by_chains():
    plan = Plan.of("demo", STAGES, ())
    count = {kind: {plan.copies[s.id] for s in STAGES if isinstance(s, kind)} for kind in (Pretrain, SFT, GRPO)}
    assert count == {Pretrain: {2}, SFT: {2}, GRPO: {1}}
    assert sum(plan.copies.values()) == 2 * 2 * 6  # ratios, betas, stages of a chain
    above = GRPO(init=CHAIN.grpo, prompt_role="id", kl_beta=0.0, optimiser=OPTIMISER, seed=0)
    beside = GRPO(init=CHAIN.grpo, prompt_role="id", kl_beta=1.0, optimiser=OPTIMISER, seed=0)
    deep = Plan.of("deep", [CHAIN.evaluate, above, beside, Evaluate(init=beside)], ())
    by_label = {stage.label.rpartition("/")[2]: deep.copies[stage.id] for stage in deep.stages}
    assert by_label == {"pretrain": 2, "sft": 2, "grpo-ood-b0.1": 2, "evaluate": 1, "grpo-id-b0": 1, "grpo-id-b1": 1}


def test_a_price_of_an_hour_gives_the_cost_of_the_rest(tmp_path):
    store = published(tmp_path, STAGES[:3], record(7.0))
    plan, index = Plan.of("demo", STAGES, store.finished_ids()), StoreIndex(store)
    span = makespan(plan, cost_model(store).seconds, 2)
    assert f"cost: about {span / 3600 * 720:.2f}, at 720 an hour" in render_plan(plan, index, CPU, TWO_CORES, price=720)
    assert "cost" not in render_plan(plan, index, CPU, TWO_CORES)


def test_every_stage_has_one_line_with_all_of_it(tmp_path):
    store = published(tmp_path, STAGES[:3], record(7.0))
    plan = Plan.of("demo", STAGES, store.finished_ids())
    text = render_plan(plan, StoreIndex(store), CPU, TWO_CORES)
    table, counts, memory, time, sharing = text.split("\n\n")
    lines = {line.split()[-1]: line for line in table.splitlines()[1:]}
    assert len(lines) == len(plan.stages)
    for stage in plan.stages:
        line = lines[stage.label]
        assert stage.id in line
        assert (stage.parent is None) or stage.parent.id in line
        assert line.startswith("cached" if stage.id in plan.finished else "to run")
    assert counts == "16 stages: 3 cached, 13 to run"
    processes = [line.rpartition(":")[0] for line in memory.splitlines()[1:]]
    assert sorted(processes) == ["evaluate", "grpo", "grpo", "pretrain", "sft"], "the largest of each kind"
    assert "on a test (2 CPU cores), 2 trials at once" in time
    assert "pretrain, sft, evaluate: from the times of 1 similar finished stages" in time
    assert "grpo: assumed at 2.5e+10 FLOP/s a CPU core + 10 s to start" in time
    assert "10 s to start, because this store has no similar stage" in time
    assert f" in {CPU.store}, and up to " in time
    assert sharing.startswith("sharing: 16 stages instead of 24, ")


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(tmp_path, width):
    plan = Plan.of("demo", STAGES, ())
    table = render_plan(plan, StoreIndex(Store(str(tmp_path))), CPU, TWO_CORES, width).split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= width


def test_a_finished_plan_has_nothing_to_wait_for(tmp_path):
    store = published(tmp_path, STAGES, record(7.0))
    text = render_plan(Plan.of("demo", STAGES, store.finished_ids()), StoreIndex(store), CPU, TWO_CORES)
    assert "time: none" in text
    assert "storage: nothing more" in text


def test_the_plan_is_in_the_store_before_anything_runs(tmp_path, monkeypatch, capsys):
    store, seen = Store(str(tmp_path / "store")), []
    monkeypatch.setattr(api, "connect", lambda _: None)
    monkeypatch.setattr(api, "ready", lambda job: job)
    monkeypatch.setattr(api, "execute", lambda *_: seen.append(StoreIndex(store).study("demo-toy")) or ["failed"])
    assert sweep.main(["--scale", "toy", "--store", store.url]) == 1
    stages = Experiment(scale="toy").stages()
    assert seen == [{stage.id: stage.label for stage in stages}]


def test_where_nothing_is_shared_it_says_so(tmp_path):
    text = render_plan(Plan.of("demo", CHAIN, ()), StoreIndex(Store(str(tmp_path))), CPU, TWO_CORES)
    assert text.endswith("sharing: no two chains of this plan have a stage in common")


def test_the_job_prints_it_without_ray(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runtime, "connect", lambda: pytest.fail("Ray was started"))
    assert sweep.main(["--scale", "toy", "--plan", "--store", str(tmp_path / "store")]) == 0
    printed = capsys.readouterr().out
    for stage in Experiment(scale="toy").stages():
        assert f"{stage.id} " in printed
    assert "on this machine (" in printed
    assert not (tmp_path / "store").exists()


def test_a_run_and_a_plan_say_how_many_cached_stages_are_of_other_code(tmp_path):
    made_by = [{"source": source()}, {"source": "0f0f"}, {"source": "0f0f"}, {}]
    for stage, record in zip(STAGES[:4], made_by, strict=True):
        store = published(tmp_path / stage.id, [stage], record)
        shutil.copytree(f"{store.url}/stages", tmp_path / "store" / "stages", dirs_exist_ok=True)
    store = Store(str(tmp_path / "store"))
    lines = other_code(Plan.of("demo", STAGES, store.finished_ids()), StoreIndex(store))
    assert lines[:2] == [
        "code: 2 of 4 cached stages were made by other code (source 0f0f)",
        "code: 1 of 4 cached stages were made by unknown code",
    ]
    assert "--force STAGE" in lines[2]
    assert other_code(Plan.of("demo", STAGES, [STAGES[0].id]), StoreIndex(store)) == []
