"""Growth of a study: no driver replaces any stage that was planned under its name, and no old page stays."""

import json
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from rayexp.cli import report as report_command
from rayexp.cli import run as sweep
from rayexp.errors import RefusedError
from rayexp.experiment import Experiment
from rayexp.stages import Stage
from rayexp.store import leases
from rayexp.store.artifacts import Store
from rayexp.store.filesystem import Files
from rayexp.store.index import StoreIndex
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures.simulated_study import RECORD, published


def stages(**grid) -> list[Stage]:
    return Experiment(study="demo", scale="toy", **{"ood_ratios": (0.05,), **grid}).stages()


ZERO, ONE = Plan.of("demo", stages(seeds=(0,)), ()), Plan.of("demo", stages(seeds=(1,)), ())
BOTH = {stage.id: stage.label for stage in (*ZERO.stages, *ONE.stages)}


def ids_of(plan: Plan, store: Store, folder: Path) -> list[str]:
    """Return the ids of the stages on the page, in place of writing it."""
    (folder / "report").mkdir()
    (folder / "results.parquet").write_text(json.dumps([s.id for s in plan.stages if s.id in plan.finished]))
    (folder / "report" / "index.html").write_text("")
    return [stage.id for stage in plan.stages]


def shown(store: Store) -> list[str]:
    return json.loads(store.files.read("studies/demo-toy/results.parquet"))


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    """Return a store in which both seeds are finished."""
    whole = published(tmp_path, [*ZERO.stages, *ONE.stages], RECORD)
    if request.param == "local":
        return whole
    copy = Store(f"memory://{uuid4().hex}")
    copy.put_folder(Path(whole.url) / "stages", "stages")
    return copy


@pytest.fixture
def study(store):
    return Study(store, "demo-toy", "demo", "toy")


# Names


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ({}, "demo-toy"),
        ({"graph": "printed"}, "demo-toy-printed"),
        ({"completion_format": "trace", "traversal": "positional"}, "demo-toy-positional-trace"),
    ],
)
def test_what_of_the_task_is_not_usual_is_part_of_the_name(variant, name):
    assert Experiment(study="demo", scale="toy", **variant).folder == name


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".", "a b", "x" * 101, "é"])
def test_a_name_that_is_no_name_of_a_folder_is_refused(name, tmp_path, capsys):
    assert sweep.main(["--scale", "toy", "--name", name, "--store", str(tmp_path / "store")]) == 2
    assert f"refused: name={name!r} should be 1 to 100 letters" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


# Growth


def test_a_study_that_is_asked_for_with_other_seeds_grows(study, store):
    study.write(ZERO, ids_of)
    assert study.write(ONE, ids_of) == shown(store) == list(BOTH)
    assert study.write(ZERO, ids_of) == list(BOTH)
    assert StoreIndex(store).study("demo-toy") == BOTH


def test_what_was_asked_for_and_never_finished_is_counted_and_not_shown(study, store):
    store.files.remove_file(f"stages/{ZERO.stages[0].id}/manifest.json")
    study.add(ZERO)
    whole = study.whole(ONE, study.labels() | {stage.id: stage.label for stage in ONE.stages})
    assert whole.unread == set()  # a finished descendant contains its value
    for stage in ZERO.stages:
        store.files.remove_file(f"stages/{stage.id}/manifest.json")
    whole = study.whole(ONE, BOTH)
    assert (whole.stages, whole.unread) == (ONE.stages, {stage.id for stage in ZERO.stages})


def test_stages_of_an_earlier_version_have_no_part_in_it(study, monkeypatch):
    study.add(ZERO)
    monkeypatch.setattr(type(ZERO.stages[0]), "version", 99)
    new = Plan.of("demo", stages(seeds=(1,)), ())
    whole = study.whole(new, study.labels())
    assert (whole.stages, whole.unread) == ((), set())


def test_of_two_drivers_that_end_together_the_last_writes_the_rows_of_both(study, store, monkeypatch):
    """Let the second come while the first writes. It waits, and then writes the page of the whole study."""
    waits = threading.Event()
    monkeypatch.setattr(leases.time, "sleep", lambda seconds: waits.set())
    second = threading.Thread(target=study.write, args=(ONE, ids_of))

    def slowly(plan: Plan, store: Store, folder: Path) -> None:
        second.start()
        assert waits.wait(20)
        assert study.labels().keys() == {stage.id for stage in ZERO.stages}
        ids_of(plan, store, folder)

    study.write(ZERO, slowly)
    second.join(20)
    assert shown(store) == list(BOTH)
    assert store.files.names("leases") == []


def test_many_drivers_that_ask_at_once_all_become_part_of_it(tmp_path):
    plans = [Plan.of("demo", stages(seeds=(seed,)), ()) for seed in range(6)]
    drivers = [
        threading.Thread(target=Study(Store(str(tmp_path)), "demo-toy", "demo", "toy").add, args=(plan,))
        for plan in plans
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert StoreIndex(Store(str(tmp_path))).study("demo-toy").keys() == {s.id for plan in plans for s in plan.stages}


def test_a_driver_that_writes_a_study_is_no_running_stage(study, store):
    def look(plan: Plan, store: Store, folder: Path) -> None:
        assert store.files.names("leases")
        assert StoreIndex(store).running() == set()
        ids_of(plan, store, folder)

    study.write(ZERO, look)


# Names that are taken


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Experiment(study="depth", scale="toy"), "by the study demo at scale toy"),
        (Experiment(study="demo", scale="tiny"), "by the study demo at scale toy"),
        (
            Experiment(study="demo", scale="toy", graph="printed"),
            "pretrain.task.graph=hidden, and this plan has printed",
        ),
    ],
)
def test_a_name_that_is_taken_by_something_else_is_refused(store, study, asked, why):
    study.add(ZERO)
    other = Study(store, "demo-toy", asked.study, asked.scale)
    for begin in (other.require_one, other.add):
        with pytest.raises(RefusedError, match=why):
            begin(Plan.of(asked.study, asked.stages(), ()))
    assert StoreIndex(store).study("demo-toy").keys() == {stage.id for stage in ZERO.stages}


def test_other_settings_of_the_same_study_are_refused(study):
    """Change settings, like a change of the budgets or of the study's own file."""
    study.add(ZERO)
    other = [s.model_copy(update={"group_size": 16}) if s.id.startswith("grpo") else s for s in ONE.stages]
    with pytest.raises(RefusedError, match=r"grpo\.group_size=4, and this plan has 16; give .* by --name"):
        study.require_one(Plan.of("demo", other[:5], ()))


def test_a_study_of_an_earlier_version_grows_where_its_settings_are_the_same(study, store):
    labels = {stage.id: stage.label for stage in ZERO.stages}
    store.files.write("studies/demo-toy/plan.json", json.dumps(labels).encode())
    with pytest.raises(RefusedError, match="graph=hidden, and this plan has printed"):
        study.require_one(Plan.of("demo", stages(graph="printed"), ()))
    assert study.write(ONE, ids_of) == list(BOTH)


# The page


def test_no_file_of_an_old_page_stays_and_no_reader_sees_two_pages_mixed(store, study, tmp_path, monkeypatch):
    seen = set()

    def watched(method):
        def call(files, *arguments):
            done = method(files, *arguments)
            if "index.html" in (names := store.files.names("studies/demo-toy/report")):
                seen.add((store.files.read("studies/demo-toy/report/index.html"), tuple(names)))
            return done

        return call

    def page(version: str, *names: str):
        def make(plan: Plan, store: Store, folder: Path) -> None:
            ids_of(plan, store, folder)
            for name in (*names, "index.html"):
                (folder / "report" / name).write_text(version)

        return make

    study.write(ZERO, page("old", "figure-1.png", "figure-2.png"))
    for name in ("upload", "remove_file", "remove", "move_folder", "write"):
        monkeypatch.setattr(Files, name, watched(getattr(Files, name)))
    study.write(ZERO, page("new", "figure-1.png", "table.csv"))
    old, new = ("figure-1.png", "figure-2.png", "index.html"), ("figure-1.png", "index.html", "table.csv")
    assert {(version.decode(), names) for version, names in seen} == {("old", old), ("new", new)}
    assert store.files.names("studies/demo-toy") == ["plan.json", "report", "results.parquet"]


# The commands


def test_a_plan_says_what_the_study_has_already(tmp_path, capsys):
    store = published(tmp_path, ZERO.stages[:2], RECORD)
    Study(store, "demo-toy", "demo", "toy").add(ZERO)
    arguments = ["--scale", "toy", "--ood-ratios", "0.05", "--store", store.url, "--plan", "--seeds"]
    assert sweep.main([*arguments, "1"]) == 0
    assert (
        "study demo-toy: 6 stages so far (2 finished); this plan adds 6; the report covers all of them, including 6 "
        "outside of this plan"
    ) in capsys.readouterr().out
    assert sweep.main([*arguments, "0"]) == 0
    assert "study demo-toy: 6 stages so far" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_is_of_all_that_was_asked_for_and_of_no_more(tmp_path, capsys):
    """Expect nothing from the scale's own grid, which these sweeps did not run."""
    store = published(tmp_path, [*ZERO.stages, *ONE.stages], RECORD)
    study = Study(store, "demo-toy", "demo", "toy")
    study.add(ZERO)
    study.add(ONE)
    assert report_command.main(["--scale", "toy", "--store", store.url]) == 0
    assert StoreIndex(store).study("demo-toy") == BOTH
    html = store.files.read("studies/demo-toy/report/index.html").decode()
    assert "Partial" not in html
    assert report_command.main(["--scale", "toy", "--seeds", "7", "--ood-ratios", "0.05", "--store", store.url]) == 0
    assert len(StoreIndex(store).study("demo-toy")) == len(BOTH) + 6
    assert "<strong>Partial:</strong> 12 of 18" in store.files.read("studies/demo-toy/report/index.html").decode()
