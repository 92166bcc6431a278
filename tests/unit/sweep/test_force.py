"""``--force`` makes stages and their descendants again, and keeps everything that they replace."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from rayexp.cli import run as sweep
from rayexp.errors import RefusedError
from rayexp.experiment import Experiment
from rayexp.stages import GRPO, SFT, Evaluate
from rayexp.store.artifacts import Store
from rayexp.store.index import AmbiguousError, StoreIndex
from rayexp.store.leases import Leases
from rayexp.sweep import force
from rayexp.sweep.plan import Plan
from tests.fixtures import local_sweep
from tests.fixtures.simulated_study import RECORD, published

STAGES = Experiment(study="demo", scale="toy", ood_ratios=(0.05,), kl_betas=(0.1, 1.0)).stages()
PLAN = Plan.of("demo", STAGES, [stage.id for stage in STAGES])
GRID = ["--scale", "toy", "--ood-ratios", "0.05", "--kl-betas", "0.1", "1.0"]
TUNED = next(stage for stage in STAGES if isinstance(stage, SFT))
REINFORCED = [stage for stage in STAGES if isinstance(stage, GRPO)]


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    """Return a store in which all stages are finished."""
    whole = published(tmp_path, STAGES, RECORD)
    if request.param == "local":
        return whole
    copy = Store(f"memory://{uuid4().hex}")
    copy.put_folder(Path(whole.url) / "stages", "stages")
    return copy


@pytest.mark.parametrize("name", [TUNED.id, TUNED.id[:-3], TUNED.label])
def test_a_stage_is_made_again_with_all_that_is_built_on_it(name):
    assert force.named([name], PLAN) == tuple(stage for stage in STAGES if TUNED in stage.lineage)
    assert force.named([], PLAN) == ()


def test_several_can_be_named():
    found = force.named([REINFORCED[0].id, REINFORCED[1].label], PLAN)
    assert [type(stage) for stage in found] == [GRPO, Evaluate, GRPO, Evaluate]


def test_a_stage_that_the_plan_lacks_is_refused_with_the_nearest(tmp_path, capsys):
    arguments = [*GRID, "--store", str(tmp_path / "store"), "--force"]
    assert sweep.main([*arguments, TUNED.label + "x"]) == 2
    assert f"did you mean '{TUNED.label}'?" in capsys.readouterr().err
    with pytest.raises(AmbiguousError):
        force.named(["grpo-"], PLAN)
    assert sweep.main([*arguments, "grpo-"]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert not (tmp_path / "store").exists()


def test_a_plan_shows_what_would_run_and_moves_nothing(tmp_path, capsys):
    store = published(tmp_path, STAGES, RECORD)
    assert sweep.main([*GRID, "--store", store.url, "--force", REINFORCED[0].id, "--plan"]) == 0
    assert "8 stages: 6 cached, 2 to run" in capsys.readouterr().out
    assert store.finished_ids() == PLAN.finished
    assert store.files.names("replaced") == []


def test_what_is_replaced_is_kept_whole_and_its_checkpoints_are_not(store):
    store.files.write(f"work/{TUNED.id}/step-000000001/trainer.pt", b"of the old code")
    manifest = store.files.read(f"stages/{TUNED.id}/manifest.json")
    again = force.named([TUNED.id], PLAN)
    said = force.set_aside(again, PLAN, store)
    assert store.finished_ids() == {STAGES[0].id, STAGES[1].id}
    assert store.files.names(f"work/{TUNED.id}") == store.files.names("leases") == []
    assert len(said) == len(again)
    (when,) = store.files.names(f"replaced/{TUNED.id}")
    assert any(line.endswith(f"; the old one is {store.url}/replaced/{TUNED.id}/{when}") for line in said)
    assert store.files.read(f"replaced/{TUNED.id}/{when}/manifest.json") == manifest
    with store.fetched(f"replaced/{TUNED.id}/{when}") as folder:
        assert sorted(file.name for file in folder.iterdir()) == ["metrics.parquet", "provenance.json", "spec.json"]


def test_nothing_is_moved_while_another_driver_runs_one_of_them(store):
    with Leases(store.files) as other:
        other.take(PLAN.trial_of(REINFORCED[1]))
        with pytest.raises(RefusedError, match=rf"{REINFORCED[1].id} is running under the driver {other.driver}"):
            force.set_aside(force.named([TUNED.id], PLAN), PLAN, store)
    assert store.finished_ids() == PLAN.finished


def test_what_other_plans_have_built_on_it_is_named_and_stays(store):
    small = Plan.of("demo", [stage for stage in STAGES if REINFORCED[1] not in stage.lineage], PLAN.finished)
    again = force.named([TUNED.id], small)
    said = force.beyond(again, small, StoreIndex(store))
    assert len(said) == 2
    assert all("not made again, because it is not in this plan: " in line for line in said)
    assert {i for i in PLAN.finished if i in "".join(said)} == PLAN.finished - small.finished
    assert force.beyond((), small, StoreIndex(store)) == []


@pytest.mark.slow
def test_a_forced_sweep_ends_with_all_of_it_made_again(tmp_path, capsys):
    store = Store(str(tmp_path / "store"))
    arguments = ["--scale", "toy", "--ood-ratios", "0.5", "--store", store.url]
    assert local_sweep.main(arguments) == 0
    old = store.manifests()
    (reinforced,) = [stage_id for stage_id in old if stage_id.startswith("grpo-")]
    assert local_sweep.main([*arguments, "--force", reinforced]) == 0
    assert f"({reinforced}); the old one is {store.url}/replaced/{reinforced}/" in capsys.readouterr().out
    kept = {stage_id: store.files.names(f"replaced/{stage_id}") for stage_id in store.files.names("replaced")}
    assert reinforced in kept
    assert [stage_id[:4] for stage_id in kept] == ["eval", "grpo"]
    assert store.manifests().keys() == old.keys()
    for stage_id, (when,) in kept.items():
        path = f"{stage_id}/{when}/manifest.json"
        assert json.loads(store.files.read(f"replaced/{path}")) == old[stage_id]
    assert local_sweep.main(arguments) == 0
    assert "0 trials to run" in capsys.readouterr().out
