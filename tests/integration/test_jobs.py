"""The job as a person submits it, on a head started by ``make head``, from a shell that sets nothing about Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOY = ["python", "jobs/sweep.py", "--scale", "toy", "--ood-ratios", "0.5"]


def plain_shell(**extra: str) -> dict[str, str]:
    """The environment of somebody who has never heard of Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | extra


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Address of the dashboard of a head started by ``make head``."""
    gcs, dashboard, agent, client = free_ports(4)
    ports = f"--port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --num-cpus=2"
    log = (tmp_path_factory.mktemp("head") / "log").open("w+")
    process = subprocess.Popen(
        ["make", "head", f"HEAD_ARGS={ports} --ray-client-server-port={client}"],
        cwd=ROOT,
        env=plain_shell(),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 90
    while True:
        try:
            version = json.load(urllib.request.urlopen(f"{address}/api/version", timeout=5))
            break
        except OSError:
            log.seek(0)
            assert process.poll() is None, log.read()
            assert time.monotonic() < deadline, f"no dashboard within 90 s: {log.read()}"
            time.sleep(1)
    assert version["ray_version"]
    yield address
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def submit(head: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "ray", "job", "submit", *arguments],
        cwd=ROOT,
        env=plain_shell(RAY_API_SERVER_ADDRESS=head),
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.timeout(600)
def test_both_ways_to_submit(head, tmp_path):
    """With an uploaded working directory the whole study runs; in short form, on the head's own checkout, one more
    beta runs on top of what is there, and then nothing is left to do."""
    store = tmp_path / "store"
    metadata = json.dumps({"whose": "ours"})
    done = submit(head, "--working-dir", ".", "--metadata-json", metadata, "--", *TOY, "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    log = done.stdout.partition("Running entrypoint")[2].partition("\n")[2].rpartition("report:")[0]  # the driver's
    assert len(log.splitlines()) < 45, "a log is to be read by people"
    assert "\x1b" not in log, "colours are for terminals"
    assert "pid=" not in log, f"what a worker has to say is for those who built it:\n{log}"
    (job,) = json.load(urllib.request.urlopen(f"{head}/api/jobs/", timeout=30))
    told = {name: job["metadata"][name] for name in ("job_name", "store", "stages", "stages_to_run", "whose")}
    assert told == {"job_name": "demo-toy", "store": str(store), "stages": "6", "stages_to_run": "6", "whose": "ours"}
    assert job["status"] == "SUCCEEDED"
    report = store / "studies/demo-toy/report/index.html"
    assert "<table" in report.read_text()
    results = pd.read_parquet(store / "studies/demo-toy/results.parquet")
    assert set(results.kind) == {"pretrain", "sft", "grpo"}
    before = {path.name for path in (store / "stages").iterdir()}

    done = submit(head, "--", *TOY, "--kl-betas", "0.1", "0.5", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    new = {path.name.partition("-")[0] for path in (store / "stages").iterdir() if path.name not in before}
    assert new == {"grpo", "evaluate"}, "pretraining was not shared"

    done = submit(head, "--", *TOY, "--kl-betas", "0.1", "0.5", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 trials to run" in done.stdout
    assert "Ray dashboard" not in done.stdout


def test_a_relative_store_in_an_uploaded_directory_is_refused(head):
    done = submit(head, "--working-dir", ".", "--", *TOY, "--store", "runs")
    assert done.returncode != 0
    assert "store is 'runs', relative to Ray's temporary copy" in done.stdout + done.stderr


def state(head: str, what: str) -> list[dict]:
    """What the State API lists."""
    answer = json.load(urllib.request.urlopen(f"{head}/api/v0/{what}?limit=10000&detail=1", timeout=30))
    return answer["data"]["result"]["result"]


def at_work(head: str) -> dict[str, list[str]]:
    """Actors and placement groups that there are, the job's own supervisor left out."""
    actors = [actor["class_name"] for actor in state(head, "actors") if actor["state"] != "DEAD"]
    groups = [group["placement_group_id"] for group in state(head, "placement_groups") if group["state"] != "REMOVED"]
    return {"actors": [name for name in actors if name != "JobSupervisor"], "groups": groups}


@pytest.mark.timeout(600)
def test_a_stopped_job_leaves_nothing_behind_and_is_finished_by_the_next(head, tmp_path):
    """`ray job stop` in the middle of a stage; then the same command."""
    store, shell = tmp_path / "store", plain_shell(RAY_API_SERVER_ADDRESS=head)
    name = "to-be-stopped"
    started = submit(head, "--no-wait", "--submission-id", name, "--", *TOY, "--store", str(store))
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 200
    while not any(name in ("RayTrainWorker", "Learner") for name in at_work(head)["actors"]):
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
    done = submit(head, "--", *TOY, "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (store / "studies/demo-toy/results.parquet").exists()
