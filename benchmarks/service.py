"""The results service under load: 50 clients request the page of a study of 1,000 finished stages, each again as soon
as it has the answer. The service reads the store again every five seconds.

Rendering and reading a thousand manifests bound it. Both happen once in five seconds, whatever the number of clients.
"""

import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.measure import Row, publish
from rayexp.stages import Stage
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures.simulated_study import RECORD, published, study_stages

STAGES, CLIENTS, SECONDS = 1000, 50, 20.0
TARGET_S = 0.3
#: Targets of the idle service: share of one core, and MiB.
TARGET_IDLE, TARGET_MIB = 0.02, 300


def run() -> list[Row]:
    with TemporaryDirectory() as name:
        stages, url = _store(Path(name))
        command = [str(Path(sys.executable).parent / "rayexp"), "serve", "--store", url, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                address = server.stdout.readline().partition(": ")[2].strip()
                latency = np.concatenate(_load(f"{address}/studies/demo-tiny"))
                idle, mib = _idle(psutil.Process(server.pid))
            finally:
                server.terminate()
    p95 = float(np.quantile(latency, 0.95))
    return [
        Row(
            case=f"{CLIENTS} clients, {stages:,} stages, p95",
            ours=f"{p95 * 1e3:.0f} ms, {len(latency) / SECONDS:.0f} pages/s",
            target=f"< {TARGET_S * 1e3:g} ms",
            ratio=f"{p95 / TARGET_S:.2f}",
            met=p95 < TARGET_S,
        ),
        Row(
            case="while nobody asks",
            ours=f"{idle:.1%} of a core, {mib:.0f} MiB",
            target=f"< {TARGET_IDLE:.0%}, {TARGET_MIB} MiB",
            met=idle < TARGET_IDLE and mib < TARGET_MIB,
        ),
    ]


def _store(folder: Path) -> tuple[int, str]:
    """Write a study of ``STAGES`` stages. Return their number, and the URL of their store."""
    seeds = tuple(range(STAGES // 40))
    stages: list[Stage] = study_stages(seeds=seeds, ood_ratios=(0.0, 0.003, 0.01, 0.05), kl_betas=(0.1, 0.3, 1.0))
    store = published(folder, stages, RECORD)
    Study(store, "demo-tiny", "demo", "tiny").add(Plan.of("demo", stages, store.finished_ids()))
    return len(stages), store.url


def _load(url: str) -> list[np.ndarray]:
    """Return the seconds of every response, by client."""
    until = time.monotonic() + SECONDS
    seconds: list[list[float]] = [[] for _ in range(CLIENTS)]

    def client(own: list[float]) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            urllib.request.urlopen(url, timeout=60).read()
            own.append(time.monotonic() - began)

    threads = [threading.Thread(target=client, args=(own,)) for own in seconds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [np.array(own) for own in seconds]


def _idle(process: psutil.Process) -> tuple[float, float]:
    """Return the share of a core that an idle process takes, and its MiB."""
    time.sleep(2)
    began, before = time.monotonic(), process.cpu_times()
    time.sleep(10)
    after = process.cpu_times()
    busy = after.user + after.system - before.user - before.system
    return busy / (time.monotonic() - began), process.memory_info().rss / 2**20


if __name__ == "__main__":
    publish(run())
