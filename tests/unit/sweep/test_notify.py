"""Notification of a sweep's end: it is sent once, whatever the end, and without secrets."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock
from urllib.error import URLError

import pytest

from rayexp import api
from rayexp.cli import run as sweep
from rayexp.config import RunConfig
from rayexp.errors import StageError
from rayexp.experiment import Experiment
from rayexp.store.artifacts import Store, StoreError
from rayexp.sweep import notify
from rayexp.sweep.notify import Course, announced
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures import local_sweep

SECRET = "open-sesame"
GRID = ["--scale", "toy", "--ood-ratios", "0.5"]
EXPERIMENT = Experiment(study="demo", scale="toy", ood_ratios=(0.5,))


class Webhook(ThreadingHTTPServer):
    """A server on loopback, with the messages that it received and its response."""

    daemon_threads = True

    def __init__(self) -> None:
        self.posts: list[dict] = []
        self.status, self.wait_s = 204, 0.0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/services/{SECRET}?key={SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Webhook  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json"
        self.server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        time.sleep(self.server.wait_s)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch) -> Iterator[Webhook]:
    monkeypatch.setenv("no_proxy", "*")
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def course(tmp_path) -> Course:
    plan = Plan.of("demo", EXPERIMENT.stages(), ())
    return Course(Study(Store(str(tmp_path / "store")), "demo-toy", "demo", "toy"), plan)


@pytest.mark.parametrize(
    ("error", "failed", "outcome"),
    [
        (None, False, "finished"),
        (None, True, "failed"),
        (StoreError("gone"), False, "failed"),
        (ZeroDivisionError(), False, "failed"),
        (KeyboardInterrupt(), False, "stopped"),
    ],
)
def test_it_is_told_once_how_the_sweep_ended(webhook, course, error, failed, outcome):
    def sweeping() -> None:
        with announced(webhook.url, course) as told:
            told.failed, told.verdicts = failed, ["C1 holds"]
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            sweeping()
    else:
        sweeping()
    (post,) = webhook.posts
    assert 0 <= post.pop("seconds") < 60
    assert post == {
        "study": "demo-toy",
        "store": course.study.store.url,
        "outcome": outcome,
        "stages_finished": 0,
        "stages_planned": len(course.plan.stages),
        "verdicts": ["C1 holds"],
    }


def test_a_command_has_it_on_its_standard_input_and_in_its_environment(course, tmp_path):
    with announced(f'cat > {tmp_path}/told; echo "$RAYEXP_OUTCOME $RAYEXP_STUDY" > {tmp_path}/said', course):
        pass
    assert json.loads((tmp_path / "told").read_text())["outcome"] == "finished"
    assert (tmp_path / "said").read_text() == "finished demo-toy\n"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("500", "127.0.0.1 answered 500"),
        ("slow", "127.0.0.1 did not answer within 0.3 s"),
        ("refused", r"127.0.0.1 cannot be reached \(ConnectionRefusedError\)"),
        (f"cat > /dev/null; exit 3 # {SECRET}", "the command ended with exit code 3"),
        (f"sleep 60 # {SECRET}", "the command did not end within 0.3 s"),
        (f"sleep 60 | cat # {SECRET}", "the command did not end within 0.3 s"),
    ],
)
def test_a_failure_is_one_warning_without_secrets_and_changes_nothing(
    webhook, course, monkeypatch, caplog, capfd, kind, why
):
    webhook.status, webhook.wait_s = 500 if kind == "500" else 204, 5.0 if kind == "slow" else 0.0
    to = {"500": webhook.url, "slow": webhook.url, "refused": f"http://127.0.0.1:1/{SECRET}"}.get(kind, kind)
    monkeypatch.setattr(notify, "LIMIT_S", 0.3 if "within" in why else 10.0)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING), announced(to, course):
        pass
    assert time.monotonic() - begun < 5
    (record,) = (record for record in caplog.records if record.name == notify.log.name)  # Ray may warn as well
    assert re.fullmatch(f"notify: cannot deliver the report \\(outcome: finished\\): {why}", record.getMessage())
    said = capfd.readouterr()
    assert SECRET not in caplog.text + said.out + said.err


@pytest.mark.parametrize("error", [TimeoutError("timed out"), URLError(TimeoutError("timed out"))])
def test_time_that_runs_out_is_named_as_such_wherever_it_does(monkeypatch, error):
    monkeypatch.setattr(notify, "urlopen", Mock(side_effect=error))
    with pytest.raises(notify.NotToldError, match=r"^127\.0\.0\.1 did not answer within 10 s$"):
        notify._post("http://127.0.0.1:1/", b"{}")


def test_a_store_that_does_not_answer_keeps_nobody_from_being_told(webhook, course, monkeypatch):
    def gone(ids):
        raise StoreError("gone")

    monkeypatch.setattr(course.study.store, "finished_ids", gone)
    with announced(webhook.url, course):
        pass
    assert webhook.posts[0]["stages_finished"] is None


def test_a_secret_of_the_store_is_not_told(course):
    course.study.store.url = f"sftp://me:{SECRET}@host/runs"
    assert notify.facts(course, "finished", 1.0)["store"] == "sftp://***@host/runs"


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("", "notify='' is empty"),
        (" ", "notify=' ' is empty"),
        (f"https:///{SECRET}", "notify is a URL without a readable host"),
        (f"http://:80/{SECRET}", "notify is a URL without a readable host"),
        (f"http://host:port/{SECRET}", "notify is a URL without a readable host"),
        (f"http://[::1/{SECRET}", "notify is a URL without a readable host"),
        (f"ftp://host/{SECRET}", "notify is a URL that begins with ftp://"),
        (f"https://me:{SECRET}@host/", "notify is a URL with a user name"),
        (f"echo '{SECRET}", "notify is a shell command with a syntax error"),
        (f"if {SECRET}", "notify is a shell command with a syntax error"),
    ],
)
def test_what_can_tell_nobody_is_refused_before_anything_starts(tmp_path, capsys, to, why):
    assert sweep.main([*GRID, "--store", str(tmp_path / "store"), "--notify", to]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"refused: {why}")
    assert "; give a" in said
    assert said.count("\n") == 1
    assert SECRET not in said
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match=r"notify( is|=)"):
        api.run(EXPERIMENT, RunConfig(store=str(tmp_path / "store")), notify=to)


def test_a_sweep_tells_its_verdicts_and_keeps_its_secrets(webhook, tmp_path, capsys):
    store = Store(str(tmp_path / "store"))
    assert local_sweep.main([*GRID, "--store", store.url, "--notify", webhook.url]) == 0
    (post,) = webhook.posts
    assert (post["study"], post["outcome"], post["stages_finished"]) == ("demo-toy", "finished", post["stages_planned"])
    said = capsys.readouterr()
    assert post["verdicts"]
    assert all(line in said.out for line in post["verdicts"])
    assert SECRET not in said.out + said.err
    for stage_id in store.finished_ids():
        assert SECRET not in json.dumps(store.provenance(stage_id))
        assert store.provenance(stage_id)["argv"][-2:] == ["--notify", "***"]


def test_a_sweep_that_fails_or_is_stopped_tells_so_once(webhook, tmp_path, monkeypatch, capsys):
    arguments = [*GRID, "--store", str(tmp_path / "store"), "--notify", webhook.url]

    def stopped(*_: object) -> list[str]:
        raise KeyboardInterrupt

    for execute, code in ((lambda *_: ["failed: it broke"], 1), (stopped, 130)):
        monkeypatch.setattr(local_sweep, "_execute", execute)
        assert local_sweep.main(arguments) == code
    with local_sweep.without_ray():
        monkeypatch.setattr(api, "execute", lambda *_: ["failed: it broke"])
        with pytest.raises(StageError, match="it broke"):
            api.run(EXPERIMENT, RunConfig(store=str(tmp_path / "store")), notify=webhook.url)
    assert [post["outcome"] for post in webhook.posts] == ["failed", "stopped", "failed"]


def test_a_plan_tells_nothing(webhook, tmp_path):
    assert sweep.main([*GRID, "--store", str(tmp_path / "store"), "--notify", webhook.url, "--plan"]) == 0
    assert webhook.posts == []
