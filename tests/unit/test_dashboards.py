"""``make dashboards``: Prometheus and Grafana without Docker, or one sentence on a missing program."""

import runpy
import subprocess
import sys

import yaml

from tests.fixtures.checkout import ROOT

SCRIPT = ROOT / "deploy/grafana/run.py"


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=60)


def program(folder, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_without_prometheus_it_says_what_installs_it(tmp_path):
    done = run(PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "apt-get install prometheus" in done.stderr


def test_without_a_head_it_says_so(tmp_path):
    program(tmp_path, "prometheus", "exit 1")
    done = run(PATH=str(tmp_path), RAY_FILES=str(tmp_path / "none"))
    assert done.returncode == 2
    assert f"no Ray head with files in {tmp_path / 'none'}" in done.stderr


def test_what_ends_by_itself_is_told_with_its_last_words_and_ends_the_other(tmp_path):
    (tmp_path / "prom_metrics_service_discovery.json").write_text("[]")
    program(tmp_path, "prometheus", "echo starting; echo the port is taken; exit 1")
    program(tmp_path, "grafana", f"echo $$ $GF_SERVER_HTTP_ADDR > {tmp_path}/seen; exec /bin/sleep 100")
    done = run(PATH=str(tmp_path), RAY_FILES=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "prometheus ended by itself: the port is taken\n"
    pid, host = (tmp_path / "seen").read_text().split()
    assert host == "127.0.0.1"
    assert subprocess.run(["kill", "-0", pid], capture_output=True).returncode == 1


def test_no_path_of_the_containers_is_left(tmp_path):
    adapted = runpy.run_path(str(SCRIPT))["adapted"]
    folder = adapted(tmp_path / "made", tmp_path / "ray")
    texts = [file.read_text() for file in folder.rglob("*.y*ml")]
    assert len(texts) == 3
    assert not [text for text in texts if "/etc/grafana" in text or ' "/ray/' in text or "[/ray/" in text]
    (job,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"{tmp_path}/ray/prom_metrics_service_discovery.json"]
    assert (folder / "dashboards/rayexp.json").read_text() == (ROOT / "deploy/grafana/rayexp.json").read_text()
