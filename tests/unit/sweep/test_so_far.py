"""Exported results of a running study, which equal those of its results table for the measurements read so far."""

import logging

import pytest

from rayexp.reports import table
from rayexp.sweep import so_far
from rayexp.sweep.plan import Plan
from rayexp.sweep.so_far import MeansSoFar
from tests.fixtures import stored_study
from tests.fixtures.stored_study import STAGES

PLACE = ["condition", "ood_ratio", "kl_beta", "role"]


@pytest.fixture(scope="module")
def plan_and_store(tmp_path_factory):
    store = stored_study.study(tmp_path_factory.mktemp("so far"))
    return Plan.of("demo", STAGES, store.finished_ids()), store


def test_means_are_those_of_the_results_table(plan_and_store):
    plan, store = plan_and_store
    means = MeansSoFar(plan, store)
    means.look_for(plan.finished)
    means.look_for(plan.finished)
    while means.read_one():
        pass
    rows = table.results(plan, store)
    rows["stage"] = rows["kind"].where(rows["prompt_role"].isna(), rows["kind"] + "-" + rows["prompt_role"].fillna(""))
    for column in ("ood_ratio", "kl_beta"):
        rows[column] = [f"{value:g}" if value == value else "" for value in rows[column]]
    by_place = rows.groupby([*PLACE, "stage"])
    assert dict(means.masses()) == pytest.approx(dict(by_place["q"].mean()))
    gains = (by_place["q"].mean() - by_place["init_q"].mean()).dropna()
    assert len(gains) < len(by_place)
    assert dict(means.gains()) == pytest.approx(dict(gains))


def test_one_measurement_is_read_at_a_time_and_only_once(plan_and_store):
    plan, store = plan_and_store
    first, second, *_ = (stage.id for stage in plan.stages if stage.pool == "measure")
    means = MeansSoFar(plan, store)
    assert not means.read_one()
    means.look_for([first])
    means.look_for([first, second])
    assert [means.read_one() for _ in range(3)] == [True, True, False]


def test_series_are_bounded(plan_and_store, monkeypatch):
    plan, store = plan_and_store
    monkeypatch.setattr(so_far, "MOST_SERIES", 3)
    means = MeansSoFar(plan, store)
    means.look_for(plan.finished)
    while means.read_one():
        pass
    assert len(dict(means.masses())) == 3


def test_a_damaged_measurement_is_left_out_with_a_warning(tmp_path, caplog):
    store = stored_study.study(tmp_path)
    plan = Plan.of("demo", STAGES, store.finished_ids())
    stage = next(stage for stage in plan.stages if stage.pool == "measure")
    store.files.write(f"stages/{stage.id}/results.parquet", b"nothing of the kind")
    means = MeansSoFar(plan, store)
    means.look_for([stage.id])
    with caplog.at_level(logging.WARNING):
        assert means.read_one()
    assert plan.labels[stage.id] in caplog.text
    assert not dict(means.masses())
