"""A job as a person submits it, to a head started by ``make head``, from a shell with nothing but what that prints."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
from playwright.sync_api import Page, sync_playwright
from ray._private.authentication.authentication_constants import AUTHENTICATION_TOKEN_COOKIE_NAME
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, DEFAULT_DASHBOARD_PORT, DEFAULT_PORT

from rayexp.service.cache import FRESH_S
from tests.fixtures import chromium, shell, strangers
from tests.fixtures.checkout import ROOT, TOY_SWEEP, plain_shell

BIN = Path(sys.executable).parent
#: Classes of actors that belong to no job's work.
STAYING = ("JobSupervisor", "ServeController", "ProxyActor", "ServeReplica")


@contextmanager
def usual_ports_taken() -> Iterator[None]:
    """Listen on the ports that Ray uses by default, as another Ray on the machine would."""
    with ExitStack() as taken:
        for port in (DEFAULT_PORT, DEFAULT_DASHBOARD_PORT, DEFAULT_DASHBOARD_AGENT_LISTEN_PORT):
            with suppress(OSError):  # there is another Ray
                taken.enter_context(socket.create_server(("", port)))
        yield


@dataclass(frozen=True)
class Head:
    """A head started by ``make head``, and the home of the account with its token."""

    address: str
    home: Path
    process: psutil.Process

    def shell(self, **extra: str) -> dict[str, str]:
        """Return the environment of another shell of the account, after the line that ``make head`` prints."""
        settings = {"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": self.address}
        return plain_shell(**account(self.home), **settings, **extra)

    def get(self, path: str):
        """Return the dashboard's answer to the account."""
        token = (self.home / ".ray/auth_token").read_text()
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {token}"})
        return json.load(urllib.request.urlopen(request, timeout=30))


def account(home: Path) -> dict[str, str]:
    """Return variables of another home, so that no token is written into the tester's own, whose caches are used."""
    caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return {"HOME": str(home), "XDG_CACHE_HOME": caches}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Start a head for an account that never had a token, while the usual ports are taken."""
    home = tmp_path_factory.mktemp("home")
    with usual_ports_taken(), (home / "log").open("w+") as log:
        process = subprocess.Popen(
            ["make", "head", "HEAD_ARGS=--num-cpus=2"],
            cwd=ROOT,
            env=plain_shell(**account(home)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield answering(home, process)
        finally:  # also of a head that never answered
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()  # make alone: it hands the signal on, and dies of it
            process.wait(timeout=60)
            assert psutil.wait_procs(started, timeout=60)[1] == [], "a head that is told to end leaves nothing"


def answering(home: Path, process: subprocess.Popen[bytes]) -> Head:
    """Return the head, once its dashboard answers at the address that ``make head`` prints."""
    deadline = time.monotonic() + 90
    while True:
        log = (home / "log").read_text()
        assert process.poll() is None, log
        assert time.monotonic() < deadline, f"no dashboard within 90 s: {log}"
        with suppress(OSError):
            if said := re.search(r"RAY_API_SERVER_ADDRESS=(http://127\.0\.0\.1:\d+)$", log, re.MULTILINE):
                started = Head(said[1], home, psutil.Process(process.pid))
                assert started.get("/api/version")["ray_version"]
                return started
        time.sleep(1)


def submit(head: Head, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "ray", "job", "submit", *arguments],
        cwd=folder,
        env=head.shell(),
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_a_head_answers_no_stranger(head):
    """Check that the token is Ray's own, and that nobody else can read it."""
    assert strangers.answers(head.process) == []
    assert strangers.sockets_for_others(head.process) == []
    assert (head.home / ".ray/auth_token").stat().st_mode & 0o077 == 0
    strangers.require_refusal(head.address)


def applications(head: Head) -> list[dict]:
    """Return the applications that the dashboard's page Serve lists."""
    return list(head.get("/api/serve/applications/")["applications"].values())


@contextmanager
def browsing(head: Head, address: str) -> Iterator[Page]:
    """Yield a page of a browser that has the token from the dashboard. A browser without it sees nothing."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.path(), args=["--no-sandbox"])
        stranger = browser.new_page()
        response = stranger.goto(f"{address}/studies/demo-toy")
        assert response
        assert response.status == 401
        assert "demo-toy" not in stranger.inner_text("body")
        token = (head.home / ".ray/auth_token").read_text().strip()
        context = browser.new_context()
        context.add_cookies([{"name": AUTHENTICATION_TOKEN_COOKIE_NAME, "value": token, "url": head.address}])
        yield context.new_page()
        browser.close()


def require_numbers_of(store: Path, address: str, page: Page) -> None:
    """Go from the address to a study and one of its stages, and check that the numbers there are those of the store."""
    page.goto(f"{address}/")
    page.click("text=demo-toy")
    stages = len(list((store / "stages").iterdir()))
    assert f"{stages} of {stages} stages are finished" in page.inner_text("main")
    results = pd.read_parquet(store / "studies/demo-toy/results.parquet")
    grpo = results[results.kind == "grpo"]
    page.click(f"a[href*='{grpo.stage_id.iloc[0]}']")
    shown = page.inner_text("main")
    for (role, cell), rows in grpo[grpo.stage_id == grpo.stage_id.iloc[0]].groupby(["role", "cell"]):
        assert re.search(rf"{role}\s+{cell}\s+{re.escape(f'{rows.q.mean():.3g}')} \[", shown), (role, cell, shown)


@pytest.mark.soak
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_both_ways_to_submit(head, tmp_path):
    """Submit the study with an uploaded working directory, then one more beta in short form, on the head's own
    checkout, while a person reads the results. After that nothing is left to do."""
    store = tmp_path / "store"
    metadata = json.dumps({"whose": "ours"})
    environment = json.dumps({"env_vars": {"TOKENIZERS_PARALLELISM": "false"}})  # the driver sets it as well
    told = ["--working-dir", ".", "--metadata-json", metadata, "--runtime-env-json", environment]
    done = submit(head, *told, "--", *TOY_SWEEP, "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    log = done.stdout.partition("Running entrypoint")[2].partition("\n")[2].rpartition("report:")[0]  # the driver's
    assert len(log.splitlines()) < 45, "a log is to be read by people"
    assert "\x1b" not in log, "colours are for terminals"
    assert "pid=" not in log, f"what a worker has to say is for those who built it:\n{log}"
    (job,) = head.get("/api/jobs/")
    told = {name: job["metadata"][name] for name in ("job_name", "store", "stages", "stages_to_run", "whose")}
    assert told == {"job_name": "demo-toy", "store": str(store), "stages": "6", "stages_to_run": "6", "whose": "ours"}
    assert job["status"] == "SUCCEEDED"
    report = store / "studies/demo-toy/report/index.html"
    assert "<table" in report.read_text()
    results = pd.read_parquet(store / "studies/demo-toy/results.parquet")
    assert set(results.kind) == {"pretrain", "sft", "grpo"}
    before = {path.name for path in (store / "stages").iterdir()}
    address = job["metadata"]["results"]
    assert f"results in a browser: {address}\n" in log
    assert f"report:  {report}\nin a browser: {address}\n" in done.stdout
    assert re.fullmatch(r"(\d+) of \1 trials done", job["metadata"]["progress"])
    assert [app["name"] for app in applications(head)] == [f"results at {address}"]
    proxy = address.removeprefix("http://").partition("/")[0]
    assert strangers.answers(head.process) == [f"{proxy} answers with 404"], "it has no /api/version"

    started = submit(
        head,
        "--no-wait",
        "--submission-id",
        "more",
        "--",
        *TOY_SWEEP,
        "--kl-betas",
        "0.1",
        "0.5",
        "--store",
        str(store),
    )
    assert started.returncode == 0, started.stdout + started.stderr
    with browsing(head, address) as page:
        states = set()
        while (status := head.get("/api/jobs/more")["status"]) in ("PENDING", "RUNNING"):
            page.goto(f"{address}/studies/demo-toy")
            states |= {mark.get_attribute("title") for mark in page.locator("[role=img]").all()}
            time.sleep(1)
        assert status == "SUCCEEDED"
        assert {"finished", "running"} <= states
        time.sleep(FRESH_S)
        require_numbers_of(store, address, page)
    new = {path.name.partition("-")[0] for path in (store / "stages").iterdir() if path.name not in before}
    assert new == {"grpo", "evaluate"}, "pretraining was not shared"

    done = submit(head, "--", *TOY_SWEEP, "--kl-betas", "0.1", "0.5", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 trials to run" in done.stdout
    assert "Ray dashboard" not in done.stdout


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_study_a_task_and_a_reward_of_ones_own_go_with_the_working_directory(head, tmp_path):
    """Submit the parts of docs/your-own.md from a folder that only has them. Commands that read the store without them
    say that they are missing."""
    store = tmp_path / "store"
    (tmp_path / "own").mkdir()
    for name, content in shell.files((ROOT / "docs/your-own.md").read_text()).items():
        (tmp_path / "own" / name).write_text(content)
    study = ["my_parts:mirrors", "--scale", "toy", "--ood-ratios", "0.5", "--set", "grpo.sampler=torch"]
    command = ["rayexp", "run", *study, "--store", str(store)]
    done = submit(head, "--working-dir", ".", "--", *command, folder=tmp_path / "own")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (store / "studies").iterdir()
    results = pd.read_parquet(folder / "results.parquet")
    assert set(results.kind) == {"pretrain", "sft", "grpo"}
    grpo = next(stage for stage in (store / "stages").iterdir() if stage.name.startswith("grpo-"))
    rewards = json.loads((grpo / "spec.json").read_text())["rewards"]
    assert [reward["kind"] for reward in rewards] == ["answer", "my_parts:Symmetry"]
    assert "+my_parts=" in json.loads((grpo / "provenance.json").read_text())["source"]

    for words in (["show", grpo.name], ["ls"], ["compare", folder.name, folder.name]):  # not where the file is
        looked = subprocess.run(
            [BIN / "rayexp", *words, "--store", store], cwd=ROOT, env=plain_shell(), capture_output=True, text=True
        )
        assert looked.returncode == 0, looked.stderr
        if words != ["ls"]:
            assert re.search("not imported, and .* my_parts:", looked.stdout, re.IGNORECASE)
    assert "my_parts" not in sys.modules


@pytest.mark.slow
def test_a_relative_store_in_an_uploaded_directory_is_refused(head):
    done = submit(head, "--working-dir", ".", "--", *TOY_SWEEP, "--store", "runs")
    assert done.returncode != 0
    assert "store='runs' would be in Ray's temporary copy" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.vllm
def test_a_sweep_that_is_stopped_twice_ends_once_and_leaves_no_process(tmp_path):
    """Send SIGTERM, and more of them and Ctrl-C while it stops. There is no traceback, the exit code is 130, and no
    process of Ray stays behind."""
    log = (tmp_path / "log").open("w+")
    sweep = subprocess.Popen(
        [sys.executable, "-u", *TOY_SWEEP[1:], "--store", str(tmp_path / "store")],
        cwd=ROOT,
        env=plain_shell(),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while " start " not in (said := (tmp_path / "log").read_text()):
        assert sweep.poll() is None, said
        time.sleep(0.1)
    started = psutil.Process(sweep.pid).children(recursive=True)
    assert started
    sweep.send_signal(signal.SIGTERM)
    while "stopping" not in (tmp_path / "log").read_text() and sweep.poll() is None:
        sweep.send_signal(signal.SIGTERM)
        sweep.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert sweep.wait(timeout=60) == 130
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "already stopping, which takes a few seconds" in said
    assert said.splitlines().count("stopped; the same command goes on from here") == 1
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def state(head: Head, what: str) -> list[dict]:
    """Return the entries of the State API."""
    answer = head.get(f"/api/v0/{what}?limit=10000&detail=1")
    return answer["data"]["result"]["result"]


def at_work(head: Head) -> dict[str, list[str]]:
    """Return the existing actors and placement groups, without the job's supervisor and the service of results."""
    actors = [actor["class_name"] for actor in state(head, "actors") if actor["state"] != "DEAD"]
    groups = [group["placement_group_id"] for group in state(head, "placement_groups") if group["state"] != "REMOVED"]
    return {"actors": [name for name in actors if name.partition(":")[0] not in STAYING], "groups": groups}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_job_leaves_nothing_behind_and_is_finished_by_the_next(head, tmp_path):
    """Stop a job by `ray job stop` in the middle of a stage, then submit the same command."""
    store, shell = tmp_path / "store", head.shell()
    name = "to-be-stopped"
    command = [*TOY_SWEEP, "--set", "grpo.sampler=torch", "--store", str(store)]
    started = submit(head, "--no-wait", "--submission-id", name, "--", *command)
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 200
    while not any(name in ("RayTrainWorker", "LearnerActor") for name in at_work(head)["actors"]):
        assert time.monotonic() < deadline, subprocess.run(
            [BIN / "ray", "job", "logs", name], env=shell, capture_output=True, text=True, timeout=60
        ).stdout
        time.sleep(0.2)
    stopped = subprocess.run([BIN / "ray", "job", "stop", name], env=shell, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == 0, stopped.stderr
    deadline = time.monotonic() + 10
    while any((left := at_work(head)).values()):
        assert time.monotonic() < deadline, f"10 s after the job was stopped there are still {left}"
        time.sleep(0.2)
    done = submit(head, "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(store.glob("studies/*/results.parquet"))
