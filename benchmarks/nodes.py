"""Does a sweep keep a large cluster busy? 64 places on simulated nodes of this host, and trials that only wait.

The plan is a real one, with its parents and leases, and Tune runs it like any sweep. Only the computation of a trial is
replaced by a pause. The measurement is the driver's loss: the share of places without a running trial, over the time
after the first wave has started. The first wave is left out, because it is bound by the host's two cores, which have to
start 64 processes.
"""

import os
import time
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune as ray_tune
from ray.cluster_utils import Cluster

from benchmarks.measure import Row, publish
from rayexp.config import RunConfig
from rayexp.distributed import access, runtime
from rayexp.stages import Pretrain
from rayexp.studies.presets import SCALES
from rayexp.sweep import scheduler
from rayexp.sweep.plan import Plan
from rayexp.sweep.progress import Progress
from rayexp.tasks.strings import StringTask

NODES, PLACES_PER_NODE = 8, 8
WAVES = 6
PAUSE_S = 20.0
TARGET = 0.9


class Places(Progress):
    """The times at which trials started and ended, by the driver's clock."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, lambda stage: stage.flops)
        self.starts: list[float] = []
        self.ends: list[float] = []

    def start(self, trial_id: str) -> None:
        super().start(trial_id)
        self.starts.append(time.monotonic())

    def end(self, trial_id: str, state: str, why: str = "") -> None:
        super().end(trial_id, state, why)
        self.ends.append(time.monotonic())

    def utilisation(self, places: int) -> float:
        """Return the share of places in use between the start of the first wave's last trial and that of the last trial
        of all."""
        begin, end = self.starts[places - 1], self.starts[-1]
        # Every trial waits equally long, so the first to start is the first to end.
        times = zip(self.starts, sorted(self.ends), strict=True)
        return sum(max(0.0, min(b, end) - max(a, begin)) for a, b in times) / (places * (end - begin))


def waiting_trial(config: dict[str, Any]) -> None:
    """Stand in for ``scheduler.run_trial``."""
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
    waves = plan(places * WAVES)
    progress = Places(waves)
    with TemporaryDirectory() as folder:
        scheduler.run_trial = waiting_trial
        scheduler.run(waves, RunConfig(store=folder, max_concurrent=places), progress)
    share = progress.utilisation(places)
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
    """Return a plan of so many independent chains."""
    budget = SCALES["toy"]
    return Plan.of(
        "nodes",
        [
            Pretrain(
                task=StringTask(axis="composition"),
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
