"""A list of stages, a plan and a report read only what they need of a large store, one study at a time."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayexp import api
from rayexp.reports import table
from rayexp.reports.provenance import provenance
from rayexp.service import facts
from rayexp.store import garbage, summaries
from rayexp.store.filesystem import Files
from rayexp.store.index import StoreIndex
from rayexp.sweep import preflight
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures.simulated_study import RECORD, published, study_stages

STAGES = study_stages(seeds=(0,), kl_betas=(0.1,), ood_ratios=(0.0, 0.01))
MORE = study_stages(seeds=(1,), kl_betas=(0.1,), ood_ratios=(0.0, 0.01))


@pytest.fixture
def store(tmp_path):
    """Return a store with a study that has its report, and stages without summaries."""
    store = published(tmp_path, [*STAGES, *MORE], RECORD)
    write_report(store)
    return store


def page(_, store, folder):
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("a page")


def write_report(store):
    plan = Plan.of("demo", STAGES, [stage.id for stage in STAGES])
    Study(store, "demo-tiny", "demo", "tiny").write(plan, page)


@pytest.fixture
def calls(monkeypatch):
    """Return a record of the folders that are listed, and of the names of the files that each call reads."""
    found: dict[str, list] = {"listed": [], "read": []}
    list_names, read_existing = Files.names, Files.read_existing

    def listed(self, folder):
        found["listed"].append(folder)
        return list_names(self, folder)

    def read(self, names):
        found["read"].append(list(names))
        return read_existing(self, names)

    monkeypatch.setattr(Files, "names", listed)
    monkeypatch.setattr(Files, "read_existing", read)
    return found


def stages_in(calls) -> set[str]:
    """Return the ids of the stages of which a file was read."""
    paths = [name.split("/") for names in calls["read"] for name in names]
    return {path[1] for path in paths if path[0] == "stages"}


def ids(stages) -> set[str]:
    return {stage.id for stage in stages}


# A list


def test_a_list_looks_only_at_stages_of_no_report_and_says_what_each_stage_does(store, calls):
    found = facts.stages(StoreIndex(store))
    assert stages_in(calls) == ids(MORE)
    assert calls["listed"].count("stages") == 1
    store.files.remove("summaries")
    assert facts.stages(StoreIndex(store)) == found
    assert {each["id"] for each in found["finished"]} == ids([*STAGES, *MORE])
    assert {each["duration_s"] for each in found["finished"]} == {90.0}


@pytest.mark.parametrize("way", ["unpublished", "set aside", "removed as garbage"])
def test_what_was_taken_back_is_gone_and_what_is_made_again_is_looked_at_itself(store, tmp_path, way):
    last, index = STAGES[-1], StoreIndex(store)
    assert index.summaries()[last.id].duration_s == 90.0
    if way == "unpublished":
        store.unpublish(last.id)
    elif way == "set aside":
        store.set_aside(last.id)
    else:
        about = json.loads(store.files.read("studies/demo-tiny/plan.json"))
        del about["stages"][last.id]
        store.files.write("studies/demo-tiny/plan.json", json.dumps(about).encode())
        assert garbage.remove(index, [f"stages/{last.id}"])
    assert last.id not in index.summaries()
    store.files.write(f"stages/{last.id}/spec.json", b"")  # an attempt that was interrupted
    assert last.id not in index.summaries()
    (tmp_path / "again").mkdir()
    store.publish(last, tmp_path / "again", RECORD | {"duration_s": 7.0})
    assert index.summaries()[last.id].duration_s == 7.0
    write_report(store)
    assert index.summaries()[last.id].duration_s == 7.0


ROWS = {"id": [STAGES[0].id], "label": ["x"], "started": [""], "duration_s": [1.0], "bytes": [1]}


@pytest.mark.parametrize(
    "change", [{"duration_s": [float("nan")]}, {"duration_s": [-1.0]}, {"bytes": [-1]}, {"label": [1]}, {"more": [1]}]
)
def test_a_file_that_is_no_summary_is_passed_over(store, change):
    before = StoreIndex(store).summaries()
    rows = ROWS | change
    schema = pa.schema([summaries.SUMMARIES.field(name) for name in ROWS]) if "more" not in change else None
    table = pa.table(rows) if schema is None or "label" in change else pa.table(rows, schema)
    file = pa.BufferOutputStream()
    pq.write_table(table, file)
    for data in (file.getvalue().to_pybytes(), b"no table"):
        store.files.write(summaries.path("demo-tiny"), data)
        assert StoreIndex(store).summaries() == before


def test_a_study_that_is_given_up_leaves_no_summaries(store):
    garbage.remove(StoreIndex(store), ["studies/demo-tiny"], "demo-tiny")
    assert store.files.names("summaries") == []


# A plan and a report


def test_a_plan_looks_at_its_own_stages_and_lists_no_others(store, calls):
    plan = api.plan(STAGES, store.url, name="mine")
    assert plan.finished == ids(STAGES) == stages_in(calls)
    assert "stages" not in calls["listed"]


def test_a_report_reads_the_files_of_many_stages_together(store, calls):
    plan = Plan.of("demo", STAGES, [stage.id for stage in STAGES])
    for make in (table.results, table.curves, provenance):
        calls["read"].clear()
        make(plan, store)
        assert len(calls["read"]) == 2  # manifests, and the files that they list


def test_the_largest_trials_of_a_plan_are_looked_for_once(monkeypatch):
    plan, run_config, looked = Plan.of("demo", STAGES, ()), api.RunConfig().resolve(0), []
    with_memory = preflight.with_memory
    monkeypatch.setattr(preflight, "with_memory", lambda *about: looked.append(about[0]) or with_memory(*about))
    nodes = preflight.placement.nodes_of([{"CPU": 64.0, "memory": 1e12}])
    preflight.require_resources(plan, run_config, nodes)
    for _ in range(2):
        preflight.concurrency(plan, run_config, nodes)
    assert all(looked.count(trial) <= 4 for trial in plan.trials)
    assert len(looked) == len(plan.trials) + 3 * 2  # each once, and the largest of both kinds in each call
