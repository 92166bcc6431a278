"""Reports that the service makes while a study runs: their times, frequency and places."""

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rayexp.service import live
from rayexp.service.app import application
from rayexp.service.live import LiveReports
from rayexp.store.artifacts import Store
from tests.fixtures import simulated_study, stored_study
from tests.fixtures.stored_study import STAGES

WRITES = """
import json, os, pathlib, sys
asked = json.load(sys.stdin)
folder = pathlib.Path(asked["folder"]) / "report"
folder.mkdir()
(folder / "index.html").write_text(asked["name"])
"""
FAILS = "import sys; sys.exit('the store is gone')"
WAITS = "import time; time.sleep(60)"


@pytest.fixture
def reports(monkeypatch):
    """Yield reports without pauses between them. Tests put a program in place of ``rayexp.service.live``."""
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    monkeypatch.setattr(live, "REST", 0.0)
    found = LiveReports("nowhere")
    yield found
    found.close()


def program(monkeypatch, text: str) -> None:
    monkeypatch.setattr(live, "COMMAND", (sys.executable, "-c", text))


def settle(reports: LiveReports, name: str) -> dict:
    for _ in range(2000):
        if not (about := reports.about(name))["in_work"]:
            return about
        time.sleep(0.01)
    raise AssertionError("it is in work for ever")


def page(reports: LiveReports, name: str = "one", since: datetime | None = None) -> bytes | None:
    return reports.file(name, "report/index.html", since)


def test_a_report_is_made_for_who_asks_and_again_when_a_stage_has_finished_since(reports, monkeypatch):
    program(monkeypatch, WRITES)
    assert page(reports) is None
    reports.ask("one", {"a"})
    assert reports.about("one")["in_work"]
    first = settle(reports, "one")
    assert page(reports) == b"one"
    assert first["finished"] == 1
    reports.ask("one", {"a"})
    assert not reports.about("one")["in_work"], "nothing has finished since"
    reports.ask("one", {"a", "b"})
    assert page(reports) == b"one", "the last one is shown meanwhile"
    assert settle(reports, "one")["finished"] == 2
    assert len(list(Path(reports._place.name).iterdir())) == 1


def test_a_report_that_is_older_than_that_of_the_store_is_not_shown(reports, monkeypatch):
    program(monkeypatch, WRITES)
    reports.ask("one", {"a"})
    settle(reports, "one")
    now = datetime.now(UTC)
    assert page(reports, since=now - timedelta(hours=1)) == b"one"
    assert page(reports, since=now + timedelta(hours=1)) is None


def test_there_are_never_two_at_once(reports, monkeypatch):
    program(monkeypatch, WAITS)
    reports.ask("one", {"a"})
    reports.ask("other", {"a"})
    assert (reports.about("one")["in_work"], reports.about("other")["in_work"]) == (True, False)


@pytest.mark.parametrize(("every_s", "rest"), [(3600.0, 0.0), (0.0, 1e9)])
def test_the_next_one_waits(reports, monkeypatch, every_s, rest):
    program(monkeypatch, WRITES)
    monkeypatch.setattr(live, "EVERY_S", every_s)
    monkeypatch.setattr(live, "REST", rest)
    reports.ask("one", {"a"})
    settle(reports, "one")
    for name in ("one", "other"):
        reports.ask(name, {"a", "b"})
        assert not reports.about(name)["in_work"]


def test_a_failure_leaves_the_last_report_and_says_why(reports, monkeypatch):
    program(monkeypatch, WRITES)
    reports.ask("one", {"a"})
    settle(reports, "one")
    program(monkeypatch, FAILS)
    reports.ask("one", {"a", "b"})
    assert settle(reports, "one")["problem"] == "the store is gone"
    assert page(reports) == b"one"
    program(monkeypatch, WRITES)
    reports.ask("one", {"a", "b"})
    assert settle(reports, "one") | {"begun": None} == {"begun": None, "finished": 2, "in_work": False, "problem": ""}


def test_one_that_takes_too_long_is_given_up(reports, monkeypatch):
    program(monkeypatch, WAITS)
    monkeypatch.setattr(live, "LIMIT_S", 0.2)
    reports.ask("one", {"a"})
    assert settle(reports, "one")["problem"] == "it was not finished within 0.2 s"


def test_a_report_that_cannot_be_begun_says_why_and_the_next_one_is_made(reports, monkeypatch):
    monkeypatch.setattr(live, "COMMAND", ("/nowhere/python",))
    reports.ask("one", {"a"})
    assert "/nowhere/python" in settle(reports, "one")["problem"]
    program(monkeypatch, WRITES)
    reports.ask("one", {"a"})
    assert settle(reports, "one")["problem"] == ""


def test_what_is_in_work_ends_with_the_service(reports, monkeypatch):
    program(monkeypatch, WAITS)
    reports.ask("one", {"a"})
    while reports._child is None:
        time.sleep(0.01)
    child = reports._child
    reports.close()
    assert child.wait(10) != 0
    settle(reports, "one")
    assert not Path(reports._place.name).exists()
    reports.ask("one", {"b"})
    assert not reports.about("one")["in_work"]


def content(store: Store) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(store.url).rglob("*")}


@pytest.mark.slow
def test_a_running_study_has_a_report_of_what_is_finished(tmp_path, monkeypatch):
    """Run the real process, and check that it leaves no trace in the store."""
    monkeypatch.setattr(live, "NICE", 0)  # tests run in parallel
    store = simulated_study.published(tmp_path, STAGES[:-4], stored_study.RECORD)
    stored_study.InStore(store, "demo-tiny", "demo", "tiny").add(stored_study.Plan.of("demo", STAGES, ()))
    before = content(store)
    with TestClient(application(store.url, ("testserver",))) as client:
        waiting = client.get("/studies/demo-tiny/report")
        assert waiting.status_code == 202
        assert waiting.headers["refresh"]
        assert client.get("/studies/demo-tiny/results").status_code == 404
        assert client.get("/api/studies/demo-tiny").json()["live"]["in_work"]
        for _ in range(1200):
            response = client.get("/studies/demo-tiny/report")
            if response.status_code == 200:
                break
            time.sleep(0.1)
        assert f"{len(STAGES) - 4} of {len(STAGES)} stages are finished, and only these are shown" in response.text
        assert response.headers["content-security-policy"].startswith("sandbox")
        assert f"of the {len(STAGES) - 4} stages that were finished then" in client.get("/studies/demo-tiny").text
        assert client.get("/api/studies/demo-tiny/rows").json()["all"] > 0
    assert content(store) == before


@pytest.mark.slow
def test_the_process_has_a_low_priority_and_says_what_it_cannot_do(monkeypatch, tmp_path):
    monkeypatch.setattr(live, "COMMAND", (sys.executable, "-c", PRIORITY))
    reports = LiveReports(str(tmp_path))
    reports.ask("none", {"a"})
    settle(reports, "none")
    assert page(reports, "none") == str(min(19, os.nice(0) + live.NICE)).encode()
    monkeypatch.undo()
    other = LiveReports(str(tmp_path))
    other.ask("none", {"a"})
    assert "study='none' is not in the store" in settle(other, "none")["problem"]
    for each in (reports, other):
        each.close()


#: A program that writes its priority as the report.
PRIORITY = """
import os
from rayexp.service import live
def write(url, name, folder):
    (folder / "report").mkdir()
    (folder / "report/index.html").write_text(str(os.nice(0)))
live.write = write
live.main()
"""
