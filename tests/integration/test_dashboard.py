"""A running sweep, as it is seen from outside: its metrics, the names of things, and its trackers' files."""

import json
import struct
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from ray._common.utils import get_ray_address_file
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.train.v2._internal.state.util import is_actor_alive
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from rayexp.config import RunConfig
from rayexp.reports.summary import results_of
from rayexp.store.artifacts import Store
from rayexp.sweep import prometheus, scheduler, trackers
from rayexp.sweep.plan import Plan
from rayexp.sweep.progress import Progress
from rayexp.sweep.so_far import MeansSoFar
from rayexp.telemetry.grafana import exposed
from rayexp.telemetry.metrics import METRICS, SWEEP
from tests.fixtures.factories import evaluate, grpo, pretrain, sft

SCRAPED_WITHIN_S = 60

#: Metrics that a stage logs only with a filter, a critic, or SFT on OOD samples.
ONLY_WITH_A_SETTING = {
    "rollout/drawn_per_kept",
    "rollout/unsolved_prompts",
    "grpo/critic_loss",
    "grpo/critic_explained",
    "sft/ood/loss",
}


class Witness:
    """A view that holds the sweep up until the numbers of each kind of stage can be seen from outside."""

    def __init__(self, progress, means, dashboard):
        self._progress = progress
        self._gauges = prometheus.PrometheusExporter(progress, means, "witnessed")
        self._dashboard = dashboard
        self._seen = set()
        self.series: dict[str, set[str]] = {}  # by name of a metric: its stages
        self.listed: dict[str, set[str]] = {"actors": set(), "placement_groups": set(), "tasks": set()}

    def __call__(self):
        for run in self._progress.running.values():
            if run.steps and run.step == run.steps and run.stage.id not in self._seen:
                self._seen.add(run.stage.id)
                self._wait_for({exposed(METRICS[name]) for name in ("sweep/stage_step", *run.numbers)}, run.stage.label)

    def _wait_for(self, names, stage):
        deadline = time.monotonic() + SCRAPED_WITHIN_S
        while missing := {name for name in names if stage not in self.series.get(name, ())}:
            assert time.monotonic() < deadline, f"{missing} of {stage} not scraped within {SCRAPED_WITHIN_S} s"
            self._gauges()
            self._scrape()
            time.sleep(1)
        for what, found in self.listed.items():
            url = f"http://{self._dashboard}/api/v0/{what}?limit=10000&detail=1"
            request = urllib.request.Request(url, headers=get_auth_headers_if_auth_enabled({}))
            answer = json.load(urllib.request.urlopen(request))
            found |= {entry["name"] for entry in answer["data"]["result"]["result"] if entry["name"]}

    def _scrape(self):
        (port,) = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("study") == "witnessed":
                    self.series.setdefault(sample.name, set()).add(sample.labels.get("stage", ""))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_at_work_is_seen_from_outside(cluster, tmp_path, monkeypatch):
    """Check that every defined metric is scraped, that actors and placement groups are named by role and calls by
    stage, and that all trackers leave their files in the store."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names = ["csv", "mlflow", "tensorboard", "wandb"]
    trackers.require(names)
    store = Store(str(tmp_path))
    reinforced = grpo(sft(pretrain()), steps=60, sampler="torch")
    plan = Plan.of("test", [reinforced, evaluate(reinforced)], ())
    progress = Progress(plan, lambda stage: stage.flops)
    witness = Witness(progress, MeansSoFar(plan, store), cluster["dashboard"])
    with trackers.opened(names, store, "seen", partial(results_of, store)) as opened:
        outcome = scheduler.run(plan, RunConfig(store=store.url), progress, [witness], opened)
    assert not outcome.failed
    assert not outcome.blocked
    assert progress.counts["done"] == len(plan.trials)

    trained = reinforced.lineage
    logged = [metric for stage in trained for metric in stage.metrics if metric.name not in ONLY_WITH_A_SETTING]
    # Results of the very end are not waited for.
    defined = [metric for metric in (*SWEEP, *logged) if not metric.name.startswith("result/")]
    assert set(witness.series) == {exposed(metric) for metric in defined}
    assert witness.series[exposed(METRICS["sweep/stage_step"])] == {stage.label for stage in trained}
    assert witness.series[exposed(METRICS["grpo/kl"])] == {reinforced.label}

    roles = {name.rpartition("-")[0] for name in witness.listed["actors"]}
    assert {"learner", "rollout-0"} <= roles
    assert {"rollout", "train"} <= {name.rpartition("-")[0] for name in witness.listed["placement_groups"]}
    calls = {method for name in witness.listed["tasks"] for stage, _, method in [name.partition(": ")] if method}
    assert {"begin", "weights", "sync", "generate", "score", "update"} <= calls
    assert f"{reinforced.label}: update" in witness.listed["tasks"]

    (folder,) = (tmp_path / "studies/seen/loggers").iterdir()
    assert {path.name for path in folder.iterdir()} == {*(trial.name for trial in plan.trials), "mlflow.db", "wandb"}
    (events,) = (folder / plan.trials[-1].name).glob("events.out.tfevents.*")
    logged = scalars(events.read_bytes())
    assert logged["ray/tune/rollout/reward"][-1][0] == reinforced.steps
    assert {f"ray/tune/{metric.name}" for metric in reinforced.metrics} - logged.keys() == {
        f"ray/tune/{name}" for name in ONLY_WITH_A_SETTING if name.startswith(("rollout/", "grpo/"))
    }
    assert (folder / plan.trials[0].name / "progress.csv").read_text().count("\n") > 1
    offline = [path.read_bytes() for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    assert len(offline) == len(trained)
    assert any(b"rollout/reward" in data for data in offline)
    runs = runs_of_mlflow(folder / "mlflow.db")
    assert {name: status for name, (status, _) in runs.items()} == {stage.label: "FINISHED" for stage in trained}
    _, metrics = runs[reinforced.label]
    assert metrics.items() >= results_of(store, evaluate(reinforced)).items()
    assert {metric.name for metric in reinforced.metrics} - metrics.keys() <= ONLY_WITH_A_SETTING
    assert not list(folder.rglob("*.pkl")), "a pickle in a store could run code"


def runs_of_mlflow(file: Path) -> dict[str, tuple[str, dict[str, float]]]:
    """Return status and last numbers of every run, by name."""
    client = MlflowClient(f"sqlite:///{file}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return {str(run.info.run_name): (run.info.status, run.data.metrics) for run in client.search_runs(ids)}


def scalars(data: bytes) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by tag, from an event file: records of length, checksum, event, checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        data = data[16 + length :]
    return found


@ray.remote(num_cpus=0)
class Asking:
    def alive(self) -> bool:
        """Answer that this actor lives, as Ray Train asks of its controller."""
        own_id = ray.get_runtime_context().get_actor_id()
        assert own_id
        return bool(is_actor_alive(own_id, timeout=20))


@pytest.mark.slow
def test_a_worker_asks_its_own_cluster_whatever_others_are_on_the_machine(cluster):
    """Let the address file name the cluster that ``ray start`` started last, or one that is gone."""
    file = Path(get_ray_address_file(None))
    before = file.read_text() if file.exists() else None
    file.write_text("127.0.0.1:1")
    try:
        assert ray.get(Asking.remote().alive.remote(), timeout=60)
    finally:
        file.unlink() if before is None else file.write_text(before)
