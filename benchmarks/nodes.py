"""Does a sweep keep a large cluster busy? 64 places on simulated nodes of this host, and trials that only wait.

The plan is a real one, with its parents and leases, and Tune runs it as it runs any sweep; only what a trial computes
is replaced by a pause. What is measured is what the driver loses: the share of all places, over time, in which no trial
was running, from the moment when the first wave had started. The rest of the host's limits (two cores that have to
start 64 processes) are left out with that first wave.
"""

import os
import time
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune as ray_tune
from ray.cluster_utils import Cluster

from benchmarks.measure import Row, publish
from rayexp.distributed import access, runtime
from rayexp.spec import Pretrain, RunConfig
from rayexp.studies.presets import SCALES
from rayexp.sweep import scheduler
from rayexp.sweep.plan import Plan
from rayexp.tasks.strings import World

NODES, PLACES_PER_NODE = 8, 8
WAVES = 6
PAUSE_S = 20.0
TARGET = 0.9


@dataclass
class Places(ray_tune.Callback):
    """When trials started and ended, by the driver's clock."""

    started: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.started.append(time.monotonic())

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(time.monotonic())

    def utilisation(self, places: int) -> float:
        """Share of the places in use between the start of the last trial of the first wave and of the last of all."""
        begin, end = self.started[places - 1], self.started[-1]
        in_use = sum(max(0.0, min(b, end) - max(a, begin)) for a, b in zip(self.started, self._ends(), strict=True))
        return in_use / (places * (end - begin))

    def _ends(self) -> list[float]:
        """Every trial waits equally long, so the first to start is the first to end."""
        return sorted(self.ended)


def waiting_trial(config: dict[str, Any]) -> None:
    """In place of ``tune.run_trial``."""
    time.sleep(PAUSE_S)
    ray_tune.report({"step": 1, "steps": 1, "stage": config["trial"]})


def run() -> list[Row]:
    places = NODES * PLACES_PER_NODE
    access.restrict()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(NODES):
        cluster.add_node(num_cpus=PLACES_PER_NODE)
    os.environ["RAY_ADDRESS"] = str(cluster.address)
    runtime.connect()
    watch = Places()
    with TemporaryDirectory() as folder:
        scheduler.run_trial = waiting_trial
        scheduler.run(plan(places * WAVES), RunConfig(store=folder, max_concurrent=places), callbacks=[watch])
    share = watch.utilisation(places)
    ray.shutdown()
    cluster.shutdown()
    return [
        Row(
            case=f"{places} places, {places * WAVES} trials",
            ours=f"{share:.1%} of the places in use",
            ratio=f"{share:.2f}",
            target=f">= {TARGET}",
            met=share >= TARGET,
        )
    ]


def plan(trials: int) -> Plan:
    """That many independent chains."""
    budget = SCALES["toy"]
    return Plan.of(
        "nodes",
        [
            Pretrain(
                world=World("composition"),
                decoder=budget.decoder,
                ood_ratio=0.1,
                samples=128,
                batch_samples=128,
                optimiser=budget.pretrain,
                seed=seed,
            )
            for seed in range(trials)
        ],
        (),
    )


if __name__ == "__main__":
    publish(run())
