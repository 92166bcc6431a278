"""A sweep goes on without its pages: a failure of Ray Serve gives one line, within a time limit."""

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from rayexp.cli import run
from rayexp.distributed import runtime
from rayexp.service import deployment
from rayexp.service.deployment import ServeError

ADDRESS = "http://127.0.0.1:8700/results-0"
JOB: Any = SimpleNamespace(store=SimpleNamespace(url="runs"))


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setattr(deployment, "is_token_auth_enabled", lambda: True)
    monkeypatch.setattr(deployment.access, "ray_token", lambda: "secret")


def test_a_cluster_without_a_token_gets_no_pages(monkeypatch):
    monkeypatch.setattr(deployment, "is_token_auth_enabled", lambda: False)
    with pytest.raises(ServeError, match="the cluster has no token; set RAY_AUTH_MODE=token"):
        deployment.deploy("runs")


def test_ray_serve_that_does_not_start_is_waited_for_no_longer_than_the_limit(token, monkeypatch):
    monkeypatch.setattr(deployment, "LIMIT_S", 0.2)
    monkeypatch.setattr(deployment, "_deployed", lambda url: time.sleep(5))
    with pytest.raises(ServeError, match=r"did not start within 0\.2 s"):
        deployment.deploy("runs")


def test_a_failure_of_ray_serve_is_one_sentence(token, monkeypatch):
    def fails(url):
        raise RuntimeError("no port is free\nTraceback ...")

    monkeypatch.setattr(deployment, "_deployed", fails)
    with pytest.raises(ServeError, match=r"^no port is free$"):
        deployment.deploy("runs")


def test_a_sweep_says_where_its_pages_are_or_why_there_are_none(monkeypatch, capsys):
    described: dict[str, str] = {}
    monkeypatch.setattr(runtime, "describe_job", described.update)
    monkeypatch.setattr(deployment, "deploy", lambda url: ADDRESS)
    assert run._serve(JOB) == ADDRESS
    assert described == {"results": ADDRESS}

    def fails(url):
        raise ServeError("it is not there")

    monkeypatch.setattr(deployment, "deploy", fails)
    assert run._serve(JOB) == ""
    assert capsys.readouterr().out.splitlines() == [
        f"results in a browser: {ADDRESS}",
        "results are not shown in a browser: it is not there; `rayexp serve` shows them",
    ]


@pytest.mark.parametrize(("environment", "expected"), [({}, False), ({"RAY_AUTH_MODE": "token"}, True)])
def test_a_job_that_was_submitted_to_a_cluster_with_a_token_serves_by_itself(monkeypatch, environment, expected):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert not run.parse_args([]).serves()
    assert run.parse_args(["--serve"]).serves()
    for name, value in {run.SUBMITTED: "{}", **environment}.items():
        monkeypatch.setenv(name, value)
    assert run.parse_args([]).serves() is expected
    assert run.parse_args(["--serve"]).serves()
    assert not run.parse_args(["--no-serve"]).serves()
    with pytest.raises(ValueError, match="serve and no_serve are both given"):
        run.parse_args(["--serve", "--no-serve"])


def test_metadata_that_ray_does_not_take_are_a_warning(monkeypatch, caplog):
    def fails(change):
        raise RuntimeError("GCS is away")

    monkeypatch.setattr(runtime, "_change_submission", fails)
    with caplog.at_level(logging.WARNING, runtime.log.name):
        runtime.describe_job({"progress": "1 of 2 trials done"})
    assert [each.getMessage() for each in caplog.records if each.name == runtime.log.name] == [
        "the job's metadata could not be changed: RuntimeError GCS is away"
    ]
