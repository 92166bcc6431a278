"""``rayexp gc`` lists before it removes, and asks at a terminal. Without one it removes nothing unless told to."""

import json
import sys

import pytest

from rayexp import cli
from rayexp.stages import GRPO
from rayexp.store.artifacts import Store
from rayexp.store.leases import Leases
from tests.fixtures.simulated_study import RECORD, published, study_stages
from tests.fixtures.stored_study import STAGES, study

LONE = study_stages(seeds=(0,), kl_betas=(3.0,), ood_ratios=(0.0,))
UNNEEDED = {stage.id for stage in LONE} - {stage.id for stage in STAGES}


@pytest.fixture
def store(tmp_path) -> Store:
    """Return a store with a study, and a chain of no study."""
    store = study(tmp_path)
    published(tmp_path / "lone", LONE, RECORD)
    other = Store(str(tmp_path / "lone" / "store"))
    for stage_id in UNNEEDED:
        with other.fetched(f"stages/{stage_id}") as folder:
            store.put_folder(folder, f"stages/{stage_id}")
        store.files.write(f"stages/{stage_id}/manifest.json", other.files.read(f"stages/{stage_id}/manifest.json"))
    return store


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that answers the questions at a terminal, and returns the list of them."""
    asked: list[str] = []

    def answer(text: str | None) -> list[str]:
        def reply(question: str) -> str:
            asked.append(question)
            if text is None:
                raise EOFError
            return text

        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setattr("builtins.input", reply)
        return asked

    return answer


def test_without_a_terminal_it_shows_and_removes_nothing(store, capsys):
    before = store.finished_ids()
    assert cli.main(["gc", "--store", store.url]) == 0
    shown = capsys.readouterr().out
    assert all(f"stages/{stage_id}" in shown for stage_id in UNNEEDED)
    assert f"no study needs {len(UNNEEDED)} stages, " in shown
    assert shown.endswith("nothing was removed; give --yes, or run this on a terminal\n")
    (line,) = [line for line in shown.splitlines() if line.startswith("demo-tiny")]
    assert line.split()[1:3] == [str(len(STAGES))] * 2
    assert store.finished_ids() == before
    assert store.files.names("leases") == store.files.names("drivers") == []


@pytest.mark.parametrize(("answer", "agreed"), [("y", True), ("YES ", True), ("", False), ("n", False), (None, False)])
def test_a_terminal_is_asked(store, terminal, capsys, answer, agreed):
    asked, before = terminal(answer), store.finished_ids()
    assert cli.main(["gc", "--store", store.url]) == 0
    (question,) = asked
    assert question.startswith(f"Remove {len(UNNEEDED)} stages, ")
    assert question.endswith("B? [y/N] ")
    assert store.finished_ids() == (before - UNNEEDED if agreed else before)
    assert (f"removed {len(UNNEEDED)} stages, " in capsys.readouterr().out) == agreed


def test_yes_removes_without_a_question_and_once(store, capsys):
    assert cli.main(["gc", "--store", store.url, "--yes"]) == 0
    assert f"removed {len(UNNEEDED)} stages, " in capsys.readouterr().out
    assert store.finished_ids() == {stage.id for stage in STAGES}
    assert cli.main(["gc", "--store", store.url, "--yes"]) == 0
    assert f"everything here is needed by some study; store {store.url}" in capsys.readouterr().out


def test_json_has_the_same_facts_and_what_was_removed(store, terminal, capsys):
    asked = terminal("y")
    assert cli.main(["gc", "--store", store.url, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert asked == facts["removed"] == []
    assert {each["path"] for each in facts["garbage"]} == {f"stages/{stage_id}" for stage_id in UNNEEDED}
    assert facts["bytes"] == sum(each["bytes"] for each in facts["garbage"]) > 0
    (one,) = facts["studies"]
    assert (one["name"], one["stages"], one["finished"], one["has_report"]) == ("demo-tiny", *[len(STAGES)] * 2, True)
    assert cli.main(["gc", "--store", store.url, "--json", "--yes"]) == 0
    assert set(json.loads(capsys.readouterr().out)["removed"]) == {each["path"] for each in facts["garbage"]}
    assert store.finished_ids() == {stage.id for stage in STAGES}


def test_a_study_is_given_up_by_its_name(store, capsys):
    assert cli.main(["gc", "--store", store.url, "--study", "demo-tiny", "--yes"]) == 0
    assert f"only the study demo-tiny needs {len(STAGES)} stages, 1 study, " in capsys.readouterr().out
    assert store.finished_ids() == UNNEEDED
    assert cli.main(["gc", "--store", store.url, "--study", "demo-tiny"]) == 2
    assert "refused: study='demo-tiny' is not in the store" in capsys.readouterr().err


def test_a_driver_that_runs_it_is_named(store, capsys):
    trial = next(stage for stage in STAGES if isinstance(stage, GRPO)).id
    with Leases(store.files) as driver:
        driver.take(trial)
        assert cli.main(["gc", "--store", store.url, "--study", "demo-tiny", "--yes"]) == 2
    assert f"the driver {driver.driver} runs {trial}, of the study demo-tiny" in capsys.readouterr().err
    assert {stage.id for stage in STAGES} <= store.finished_ids()
