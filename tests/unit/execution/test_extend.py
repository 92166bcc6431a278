"""The places of OOD samples in a pretraining; and a pretraining in several stages, equal to the bit to one stage."""

import pytest
from pydantic import ValidationError

from rayexp.config import RunConfig, explain
from rayexp.execution import pretrain as runner
from rayexp.execution import rollout_loop, supervised
from rayexp.stages import Evaluate, Extend
from rayexp.stages.extend import published_at
from rayexp.store.artifacts import Store
from rayexp.sweep.plan import Plan
from rayexp.tasks.strings import StringTask
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import logged, weights_digest
from tests.fixtures.factories import MICRO, grpo, pretrain, sft

WHOLE = pretrain(decoder=MICRO, samples=700, batch_samples=64)  # 11 steps
STOPS = (3, 8)
PARTS = published_at(WHOLE, STOPS)


# The places of OOD samples


def samples(stage):
    """Return the tokens, which identify the cell, and the OOD flag of every sample, in the order of their numbers."""
    found = {}
    for step in range(stage.schedule_steps):
        for batch in runner.batch(stage, step):
            for number, row, ood in zip(batch.index_N.tolist(), batch.tokens_NT, batch.ood_N.tolist(), strict=True):
                found[number] = (row.tobytes(), ood)
    assert sorted(found) == list(range(stage.samples))
    return [found[number] for number in range(stage.samples)]


@pytest.mark.parametrize("ratio", [0, 0.003, 0.1, 1 / 3, 0.49, 0.5])
@pytest.mark.parametrize("count", [64, 701])
def test_equally_many_ood_samples_come_early_late_or_throughout(ratio, count):
    seen = {
        exposure: [ood for _, ood in samples(pretrain(samples=count, ood_ratio=ratio, exposure=exposure))]
        for exposure in ("uniform", "early", "late")
    }
    total, half = int(count * ratio), -(-count // 2)
    assert {sum(oods) for oods in seen.values()} == {total}
    assert sum(seen["early"][:half]) == total == sum(seen["late"][count - half :])
    for first, exposure in ((0, "early"), (count - half, "late")):
        for places in range(half + 1):
            assert sum(seen[exposure][first : first + places]) == pytest.approx(places * total / half, abs=1)


def test_cells_stay_balanced_and_a_sample_is_that_of_its_cell():
    stage = pretrain(samples=600, ood_ratio=0.2, exposure="early")
    task, found = stage.task, samples(stage)
    for cells, is_ood in ((task.cells("id"), False), (task.cells("ood"), True)):
        written = {cell: task.of_cell("pretrain", 0, cell, 0, 600).tokens_NT for cell in cells}
        counts = dict.fromkeys(cells, 0)
        for number, (row, ood) in enumerate(found):
            if ood == is_ood:
                counts[next(cell for cell in cells if written[cell][number].tobytes() == row)] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_label_tells_the_exposure():
    assert pretrain(exposure="late").label == "composition-r0.25-late-s0/pretrain"
    assert pretrain(exposure="uniform").id == pretrain().id != pretrain(exposure="early").id


# Pretrainings in several stages


class StopHereError(Exception):
    pass


def run(store, stages, **settings):
    supervised.run_in_process(stages, RunConfig(store=str(store), **settings), lambda report: None)
    return Store(str(store))


def test_models_on_the_way_are_those_of_a_pretraining_that_stops_there_and_the_last_that_of_the_whole(tmp_path):
    assert [stage.steps for stage in PARTS] == [3, 8, 11]
    assert [stage.short_label for stage in PARTS] == ["pretrain-3", "extend-8", "extend"]
    one, two = run(tmp_path / "one", [WHOLE]), run(tmp_path / "two", PARTS)
    assert weights_digest(two, PARTS[-1]) == weights_digest(one, WHOLE)
    curve = [(row[0], row[1].partition("/")[2], row[2]) for row in rows(one, WHOLE)]
    assert [(row[0], row[1].partition("/")[2], row[2]) for part in PARTS for row in rows(two, part)] == curve
    straight = pretrain(**{**settings_of(WHOLE), "stop_after": 8})
    assert weights_digest(run(tmp_path / "three", [straight]), straight) == weights_digest(two, PARTS[1])
    names = {
        stage.id: "trainer/shard-00001-model-00001-of-00001.safetensors" in manifest
        for stage, manifest in zip(PARTS, manifests(two, PARTS), strict=True)
    }
    assert list(names.values()) == [True, True, False]


def rows(store, stage):
    """Return step, metric and value of all logged numbers that do not depend on time."""
    table = store.table(stage.id, "metrics.parquet").to_pylist()
    return [(row["step"], row["metric"], row["value"]) for row in table if "tokens_per_s" not in row["metric"]]


def settings_of(stage):
    return {name: getattr(stage, name) for name in type(stage).model_fields if name != "kind"}


def manifests(store, stages):
    found = store.manifests([stage.id for stage in stages])
    return [found[stage.id]["files"] for stage in stages]


def test_nothing_is_trained_twice_and_one_trial_does_it(tmp_path, monkeypatch):
    trained, batch = [], runner.batch
    monkeypatch.setattr(runner, "batch", lambda stage, step: trained.append(step) or batch(stage, step))
    on_the_way = [child for stage in PARTS for child in (stage, Evaluate(init=stage, prompts_per_cell=2), sft(stage))]
    plan = Plan.of("it", on_the_way, ())
    assert len(plan.trials) == 1
    run(tmp_path, plan.trials[0].stages)
    assert trained == list(range(11))


@pytest.mark.parametrize("at", [4, 10])
def test_a_stage_on_the_way_that_dies_goes_on_as_if_nothing_had_happened(at, tmp_path, monkeypatch):
    expected = run(tmp_path / "one", PARTS)
    batch = runner.batch

    def dies(stage, step):
        if step == at:
            raise StopHereError
        return batch(stage, step)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "batch", dies)
        with pytest.raises(Exception, match="StopHereError"):
            run(tmp_path / "two", PARTS, checkpoint_every_s=0)
    found = run(tmp_path / "two", PARTS)
    for stage in PARTS:
        assert weights_digest(found, stage) == weights_digest(expected, stage)
        assert logged(found, stage) == logged(expected, stage)


def test_grpo_starts_from_a_model_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_loop, "acquire_workers", crash_harness.local_workers)
    store = run(tmp_path, PARTS[:2])
    stage = grpo(PARTS[1], sampler="torch", steps=1)
    rollout_loop.run(stage, [], RunConfig(store=str(tmp_path)), lambda report: None)
    assert store.finished(stage.id)
    assert stage.label == "composition-r0.25-s0/pretrain-3/extend-8/grpo-id-b0.1"


# Refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pretrain(samples=1000, batch_samples=100, stop_after=10), "stop_after=10 should be below 10, the"),
        (lambda: Extend(init=PARTS[0], stop_after=3), "stop_after=3 should be from 4 to 10, or unset for the end"),
        (lambda: Extend(init=PARTS[0], stop_after=11), "stop_after=11 should be from 4 to 10, or unset for the end"),
        (
            lambda: Extend(init=WHOLE),
            "init=composition-r0.25-s0/pretrain cannot be continued; give a pretraining with stop_after",
        ),
        (
            lambda: Extend(init=PARTS[-1]),
            "init=composition-r0.25-s0/pretrain-3/extend-8/extend cannot be continued; give a pretrain",
        ),
        (
            lambda: Extend(init=sft(PARTS[0])),
            "init=composition-r0.25-s0/pretrain-3/sft cannot be continued; give a pretraining with",
        ),
        (lambda: pretrain(exposure="middle"), "exposure='middle' is not one of uniform, early, late"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, said):
    with pytest.raises(ValidationError) as refused:
        make()
    assert explain(refused.value).startswith(said)


def test_the_work_of_the_parts_is_that_of_the_whole():
    assert sum(stage.flops for stage in PARTS) == pytest.approx(WHOLE.flops)
    assert StringTask(axis="composition") == PARTS[-1].root.task
