"""A store of 100,000 finished stages on S3: listing it, planning a study in it and writing a study's report.

The server is moto's, on loopback, in a process of its own whose memory does not count. It is filled from inside,
because a request for each object would take longer than all measurements. One study of 1,000 stages is complete, with
made-up results. Of the other stages the store has only what the commands read: manifests, records, plans and summaries.

    python -m benchmarks.store 10000        another number of stages
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Row, publish
from tests.fixtures.s3 import S3Server

STAGES, OF_A_STUDY = 100_000, 1_000
TARGET_S, TARGET_MIB = 60.0, 1024
BUCKET = "benchmark"
URL = f"s3://{BUCKET}/runs"
#: The grid of the study: 40 stages a seed.
GRID = ["demo", "--scale", "tiny", "--kl-betas", "0.1", "0.3", "1.0", "--ood-ratios", "0", "0.003", "0.01", "0.05"]
SEEDS = [str(seed) for seed in range(OF_A_STUDY // 40)]
COMMANDS = {
    "rayexp ls": ["ls", "--json"],
    "rayexp plan": ["plan", *GRID, "--seeds", *SEEDS, str(len(SEEDS))],  # one more than the finished seeds
    "rayexp report": ["report", *GRID, "--seeds", *SEEDS],
}
KINDS = ("evaluate", "grpo", "pretrain", "sft")
FILES = ("metrics.parquet", "model/config.json", "model/model.safetensors", "provenance.json", "spec.json")


def run(stages: int = STAGES) -> list[Row]:
    with S3Server("benchmarks.store", "serve", str(stages), start_s=600) as server:
        return [row(name, command, stages, server) for name, command in COMMANDS.items()]


def row(name: str, command: list[str], stages: int, server: S3Server) -> Row:
    """Run a command in a process of its own. Return its row."""
    child = [sys.executable, "-m", "benchmarks.store", "measure", *command, "--store", URL]
    server.requests()
    began = time.monotonic()
    done = subprocess.run(child, env=os.environ | server.environment(), capture_output=True, text=True, check=True)
    seconds, requests = time.monotonic() - began, sum(server.requests().values())
    cpu_s, mib = json.loads(done.stderr.splitlines()[-1])
    return Row(
        case=f"{name}, {stages:,} stages",
        ours=f"{seconds:.1f} s ({cpu_s:.1f} s of CPU), {mib:.0f} MiB, {requests:,} requests",
        ratio=f"{seconds / TARGET_S:.2f}",
        target=f"< {TARGET_S:g} s, {TARGET_MIB} MiB",
        met=seconds < TARGET_S and mib < TARGET_MIB,
    )


def measure(command: list[str]) -> None:
    """Run a command in the child. Print its CPU seconds and peak MiB in the last line."""
    from benchmarks.plan import peak_mib
    from rayexp.cli import main

    code = main(command)
    print(json.dumps([time.process_time(), peak_mib()]), file=sys.stderr)
    sys.exit(code)


# The server


def serve(stages: int, port: int) -> None:
    """Fill a store with ``stages`` stages, and serve it until the process ends."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    from tests.fixtures import s3

    remember_the_long_listing()
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    with TemporaryDirectory() as folder:
        for name, data in (*real(Path(folder)), *others(stages - OF_A_STUDY)):
            backend.put_object(BUCKET, f"runs/{name}", data)
    s3.main(port)


def remember_the_long_listing() -> None:
    """Let moto scan all objects once for the folders below stages/, and not for each page of names. S3 does not scan
    them for each page either."""
    from moto.s3.models import S3Backend

    listed: dict[int, Any] = {}
    backend: Any = S3Backend
    list_objects = backend.list_objects

    def remembered(self: Any, bucket: Any, prefix: str | None, *page: Any, **rest: Any) -> Any:
        if not (prefix or "").endswith("/stages/"):
            return list_objects(self, bucket, prefix, *page, **rest)
        objects = len(bucket.keys)
        if objects not in listed:
            listed[objects] = list_objects(self, bucket, prefix, *page, **rest)
        return listed[objects]

    backend.list_objects = remembered


def real(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a study with results by a formula."""
    from rayexp import api
    from rayexp.cli.run import parse_args
    from rayexp.config import RunConfig
    from tests.fixtures.simulated_study import RECORD, published

    experiment = parse_args(["--study", *GRID, "--seeds", *SEEDS]).experiment
    plan = api.plan(experiment, store=str(folder / "empty"))
    store = published(folder, plan.stages, RECORD)
    api.prepare(experiment, RunConfig(store=store.url)).study.add(plan)
    root = Path(store.files.root)
    for file in root.rglob("*"):
        if file.is_file():
            yield file.relative_to(root).as_posix(), file.read_bytes()


def others(stages: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files that the commands read of ``stages`` further stages, in studies of ``OF_A_STUDY`` each."""
    from rayexp.config import canonical_json
    from rayexp.store import summaries
    from tests.fixtures.simulated_study import RECORD

    record = json.dumps(RECORD | {"packages": {f"package{number}": "1.0" for number in range(8)}}).encode()
    sums = {name: {"bytes": 1000 + len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in FILES}
    for first in range(0, stages, OF_A_STUDY):
        labels, listed = dict[str, str](), list[summaries.StageSummary]()
        for number in range(first, min(first + OF_A_STUDY, stages)):
            kind, digest = KINDS[number % len(KINDS)], hashlib.sha256(b"%d" % number).hexdigest()[:16]
            stage_id, label = f"{kind}-{digest}", f"other{first // OF_A_STUDY}/seed{number}/{kind}"
            labels[stage_id] = label
            listed.append(summaries.StageSummary(stage_id, label, RECORD["started"], RECORD["duration_s"], 5_000))
            manifest = {"id": stage_id, "label": label, "versions": [1], "files": sums}
            yield f"stages/{stage_id}/manifest.json", canonical_json(manifest).encode()
            yield f"stages/{stage_id}/provenance.json", record
        name = f"other{first // OF_A_STUDY}"
        yield summaries.path(name), summaries.packed(listed)
        yield f"studies/{name}/plan.json", json.dumps({"study": "own", "scale": "own", "stages": labels}).encode()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", stages, port]:
            serve(int(stages), int(port))
        case ["measure", *command]:
            measure(command)
        case [stages]:
            publish(run(int(stages)))
        case _:
            publish(run())
