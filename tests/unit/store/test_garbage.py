"""Removal of files that no study needs, and of nothing else: not of running stages, and not if a plan is unreadable."""

import json
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayexp.errors import RefusedError
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain, Stage
from rayexp.store import garbage, leases
from rayexp.store.artifacts import FAILURE, STAGED, Store, StoreError
from rayexp.store.filesystem import Files
from rayexp.store.garbage import StoreUse, alone, remove
from rayexp.store.index import STUDY_LEASE, StoreIndex
from rayexp.store.leases import LONG_GONE_S, Leases, held
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures.simulated_study import study_stages

#: Chains that share pretraining and SFT: one of a study, one of another study, and one of none.
MILD, STRICT, LONE = (
    study_stages(seeds=(0,), kl_betas=(beta,), ood_ratios=(0.0, 0.01) if beta == 1.0 else (0.0,))
    for beta in (0.1, 1.0, 3.0)
)
ALL = list({stage.id: stage for stage in [*MILD, *STRICT, *LONE]}.values())


def ids(stages: list[Stage]) -> set[str]:
    return {stage.id for stage in stages}


def add(store: Store, name: str, stages: list[Stage]) -> None:
    Study(store, name, "demo", "tiny").add(Plan.of("demo", stages, store.finished_ids()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Store:
    """Return a store in which all chains are finished, each stage with a file of some bytes. Two chains are studies.
    Tests only read it."""
    store = Store(str(tmp_path_factory.mktemp("whole")))
    for number, stage in enumerate(ALL):
        files = tmp_path_factory.mktemp("files")
        (files / "weights").write_bytes(b"x" * (100 + number))
        store.publish(stage, files, {})
    add(store, "mild", MILD)
    add(store, "strict", STRICT)
    return store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path, whole):
    """Return a copy of the store."""
    return copied(whole, str(tmp_path / "store") if request.param == "local" else f"memory://{uuid4().hex}")


def copied(whole: Store, url: str) -> Store:
    copy = Store(url)
    for folder in ("stages", "studies"):
        copy.put_folder(Path(whole.url) / folder, folder)
    return copy


def found(store: Store, study: str = "") -> dict[str, str]:
    """Return the kinds of the garbage, by path."""
    return {each.path: each.kind for each in StoreUse(StoreIndex(store), study).garbage()}


def removed(store: Store, study: str = "") -> set[str]:
    """Remove all that is found. Return the ids of finished stages that are gone."""
    before = store.finished_ids()
    remove(StoreIndex(store), found(store, study), study)
    return before - store.finished_ids()


def test_stages_of_no_study_go_and_those_that_studies_share_stay(store):
    assert set(found(store)) == {f"stages/{stage_id}" for stage_id in ids(LONE) - ids(MILD) - ids(STRICT)}
    assert removed(store) == ids(LONE) - ids(MILD) - ids(STRICT)
    assert found(store) == {}
    assert store.damaged(store.finished_ids()) == {}
    assert store.files.names("leases") == store.files.names("drivers") == []


def test_a_study_that_is_given_up_goes_with_what_only_it_needs(store):
    assert removed(store, "strict") == ids(STRICT) - ids(MILD) - ids(LONE)
    assert StoreIndex(store).studies() == ["mild"] == store.files.names("studies")
    assert ids(MILD) <= store.finished_ids()
    with pytest.raises(StoreError, match=r"study='strict' is not in the store .*, which has mild"):
        found(store, "strict")


def test_bytes_of_a_study_are_those_of_its_stages_and_of_its_folder(store):
    use = {each.name: each for each in StoreUse(StoreIndex(store)).studies()}
    finished = StoreIndex(store).finished()
    for name, stages, other in (("mild", MILD, STRICT), ("strict", STRICT, MILD)):
        folder = len(store.files.read(f"studies/{name}/plan.json"))
        assert use[name].bytes == folder + sum(finished[stage_id].bytes for stage_id in ids(stages))
        assert use[name].own_bytes == folder + sum(finished[i].bytes for i in ids(stages) - ids(other))
        assert (use[name].stages, use[name].finished, use[name].earlier) == (len(stages), len(stages), 0)
        assert not use[name].has_report
    given_up = StoreUse(StoreIndex(store), "mild").garbage()
    assert sum(each.bytes for each in given_up) == use["mild"].own_bytes


def test_parents_of_what_a_plan_names_are_needed_where_it_does_not_name_them(store):
    (measured,) = [stage for stage in LONE if isinstance(stage, Evaluate) and isinstance(stage.init, GRPO)][:1]
    store.write_study("one", "plan.json", json.dumps({"stages": {measured.id: measured.label}}).encode())
    assert removed(store) == ids(LONE) - ids(MILD) - ids(STRICT) - ids(list(measured.lineage))


@settings(max_examples=25, deadline=None)
@given(plans=st.lists(st.sets(st.sampled_from(range(len(ALL))), min_size=1), max_size=3))
def test_whatever_studies_name_is_needed_with_its_parents_and_nothing_else(whole, plans):
    store = copied(whole, "memory://any")
    store.files.remove("studies")
    for number, plan in enumerate(plans):
        labels = {ALL[i].id: ALL[i].label for i in plan}
        store.write_study(f"s{number}", "plan.json", json.dumps({"stages": labels}).encode())
    needed = {each.id for plan in plans for i in plan for each in ALL[i].lineage}
    assert set(found(store)) == {f"stages/{stage_id}" for stage_id in ids(ALL) - needed}


def test_stages_of_an_earlier_version_are_told_apart(store, monkeypatch):
    monkeypatch.setattr(SFT, "version", SFT.version + 1)
    for stage in ALL:
        for each in stage.lineage:
            vars(each).pop("id", None)
    try:
        kinds = found(store)
        assert set(kinds) == {
            f"stages/{i}"
            for i in store.finished_ids()
            - set(StoreIndex(store).study("mild"))
            - set(StoreIndex(store).study("strict"))
        }
        assert set(kinds.values()) == {"earlier"}
        use = {each.name: each for each in StoreUse(StoreIndex(store)).studies()}
        assert use["mild"].earlier == sum(not isinstance(each.subject, Pretrain) for each in MILD)
    finally:
        monkeypatch.undo()
        for stage in ALL:
            for each in stage.lineage:
                vars(each).pop("id", None)


def test_what_only_a_label_tells_to_be_a_parent_is_kept(store):
    """Use a child of another version. Its spec has other ids than those under which its parents are stored."""
    child = next(stage for stage in LONE if isinstance(stage, GRPO))
    store.files.write(f"stages/{child.id}/spec.json", b"{}")
    store.write_study("old", "plan.json", json.dumps({"stages": {child.id: child.label}}).encode())
    gone = removed(store)
    assert gone.isdisjoint(each.id for each in child.lineage)
    assert gone


def test_checkpoints_of_what_is_finished_or_of_no_study_go(store):
    begun = study_stages(seeds=(7,), kl_betas=(0.1,), ood_ratios=(0.0,))
    add(store, "begun", begun)
    stranger, failed = "grpo-0123456789abcdef", MILD[0].id
    for stage_id in (MILD[1].id, begun[0].id, stranger, LONE[-1].id):
        store.files.write(f"work/{stage_id}/step-000000001/manifest.json", b"{}")
    store.files.write(f"work/{failed}/{FAILURE}", b"{}")
    paths = {path for path, kind in found(store).items() if kind == "checkpoints"}
    assert paths == {f"work/{i}" for i in (MILD[1].id, stranger, LONE[-1].id)}
    removed(store)
    assert store.files.names("work") == sorted([begun[0].id, failed])


def test_leftovers_of_interrupted_writes_go(store):
    begun = study_stages(seeds=(7,), kl_betas=(0.1,), ood_ratios=(0.0,))
    add(store, "begun", begun)
    staged, draft = f"work/{begun[0].id}/staged-01234567", f"studies/mild/{STAGED}"
    half, planned = "stages/sft-0123456789abcdef", f"stages/{begun[0].id}"
    for folder in (staged, draft, half, planned):
        store.files.write(f"{folder}/file", b"half")
    assert {path for path, kind in found(store).items() if kind == "leftover"} == {staged, draft, half}
    with Leases(store.files) as driver, held(store.files, f"{STUDY_LEASE}mild", "writes"):
        driver.take(begun[0].id)
        assert {path for path, kind in found(store).items() if kind == "leftover"} == {half}
    removed(store)
    assert store.files.names(f"work/{begun[0].id}") == store.files.names("stages/sft-0123456789abcdef") == []
    assert store.files.names("studies/mild") == ["plan.json"]
    assert store.files.names(planned) == ["file"]


def test_what_force_replaced_goes_when_it_was_made_again(store):
    finished, unfinished = MILD[0], MILD[-1]
    for stage in (finished, unfinished):
        store.files.write(f"replaced/{stage.id}/2026-01-01T00-00-00-abcd/manifest.json", b"{}")
    store.unpublish(unfinished.id)
    removed(store)
    assert store.files.names("replaced") == [unfinished.id]


def dead_driver(files: Files, work: str) -> Leases:
    """Return the leases of a driver of another machine, which beats no more."""
    driver = Leases(files)
    files.write(f"drivers/{driver.driver}", b"1 another boot pid 1")
    assert driver.take(work)
    return driver


def test_leases_of_a_dead_driver_go_and_those_of_a_living_one_stay(store):
    gone = dead_driver(store.files, MILD[1].id)
    soon = datetime.now(UTC) + timedelta(seconds=LONG_GONE_S + 1)
    assert "driver" not in found(store).values()
    use = StoreUse(StoreIndex(store), now=soon)
    assert {each.path for each in use.garbage() if each.kind == "driver"} == {
        f"drivers/{gone.driver}",
        f"leases/{MILD[1].id}.000001",
    }
    ended = Leases(store.files)
    store.files.write(f"drivers/{ended.driver}", f"1 {leases.process_identity(os.getpid())}0".encode())
    with Leases(store.files) as living:
        living.take(STRICT[0].id)
        removed(store)
        assert store.files.names("drivers") == sorted([living.driver, gone.driver])
        assert len(store.files.names("leases")) == 2


def test_a_study_that_is_run_is_not_given_up(store):
    with Leases(store.files) as driver:
        driver.take(MILD[0].id)
        removed(store)
        with pytest.raises(
            RefusedError, match=f"{driver.driver} runs {MILD[0].id}, of the study mild; stop it, or wait"
        ):
            found(store, "mild")
        with pytest.raises(RefusedError, match="of the study strict"):  # it shares the stage
            remove(StoreIndex(store), ["studies/strict"], "strict")
    assert StoreIndex(store).studies() == ["mild", "strict"]


def test_nothing_goes_while_a_driver_runs_what_no_plan_names(store):
    with Leases(store.files) as driver:
        driver.take("pretrain-0123456789abcdef")
        with pytest.raises(RefusedError, match=r"which is in no study's plan\.json; stop it, or wait for it"):
            found(store)


def test_nothing_goes_where_a_plan_is_damaged_or_missing_until_that_study_is_given_up(store):
    store.files.write("studies/torn/results.parquet", b"")
    for plan in (None, b"", b"{}", b"[]", b'{"stages": [1]}', b'{"stages": {"a": 1}}', b'{"sta'):
        if plan is not None:
            store.files.write("studies/torn/plan.json", plan)
        with pytest.raises(RefusedError, match=r"study='torn' has a missing or damaged plan\.json"):
            found(store)
    with pytest.raises(RefusedError, match="study='torn'"):
        found(store, "mild")
    assert removed(store, "torn") == set()
    assert StoreIndex(store).studies() == ["mild", "strict"] == store.files.names("studies")


def test_a_removal_that_is_interrupted_anywhere_leaves_nothing_that_looks_finished(store, monkeypatch):
    paths, index = found(store), StoreIndex(store)
    calls, limit = 0, 0
    remove_file, remove_folder = Files.remove_file, Files.remove

    def dying(act):
        def call(files, name):
            nonlocal calls
            if name.startswith("stages/"):
                calls += 1
                if calls > limit:
                    raise KeyboardInterrupt
            act(files, name)

        return call

    for name, act in (("remove_file", remove_file), ("remove", remove_folder)):
        monkeypatch.setattr(Files, name, dying(act))
    for limit in range(2 * len(paths)):  # noqa: B007  read by ``dying``
        calls = 0
        with suppress(KeyboardInterrupt):
            remove(index, paths)
        there = store.finished_ids()
        assert store.damaged(there) == {}
        assert all(each.id in there for stage in ALL if stage.id in there for each in stage.lineage)
        if not found(store):
            break
    monkeypatch.undo()
    removed(store)
    assert store.finished_ids() == ids(MILD) | ids(STRICT)
    assert set(store.files.names("stages")) == store.finished_ids()


def test_what_a_study_asks_for_after_it_was_shown_stays(store):
    shown = found(store)
    add(store, "late", LONE)
    assert remove(StoreIndex(store), shown) == []
    assert ids(LONE) <= store.finished_ids()


def test_a_removal_waits_for_a_sweep_that_begins(store):
    """Start the removal when the sweep has read the finished stages, but its plan is not in the store yet."""
    done = threading.Event()

    def removing():
        remove(StoreIndex(store), shown)
        done.set()

    shown, thread = found(store), threading.Thread(target=removing)
    with alone(store.files):
        thread.start()
        add(store, "late", LONE)
        assert not done.wait(3 * leases.SECONDS_BETWEEN_LOOKS)
    thread.join(timeout=30)
    assert done.is_set()
    assert ids(LONE) <= store.finished_ids()


def test_a_removal_whose_lease_was_taken_stops(store, monkeypatch):
    monkeypatch.setattr(garbage, "_remove", lambda files, each: files.remove("leases"))
    with pytest.raises(leases.LeaseLostError):
        remove(StoreIndex(store), found(store))
