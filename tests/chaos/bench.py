"""A Ray cluster of several nodes on this host, and the drivers that run a sweep on it.

Everything here is a child of this process, and nothing else is ever killed.
"""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]

from rayexp.distributed import access
from rayexp.store.artifacts import Store
from tests.fixtures.checkout import ROOT

#: One chain at each OOD ratio: a training trial, then one of GRPO.
SWEEP = ["--scale", "chaos", "--kl-betas", "0.1", "--ood-ratios"]
RATIOS = ["0.05", "0.5"]
TRIALS_OF_A_CHAIN = 2
#: A checkpoint at every chance; as many attempts as there can be faults.
OPTIONS = ["--checkpoint-every-s", "0.5", "--worker-failures", "20", "--timeout-s", "120"]
OPTIONS += ["--in-process-flop", "0"]  # so that there are Train workers to be killed
NODES = 2
#: Seconds from the loss of a node to the cluster's knowing it.
HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}


class Bench:
    """A head without CPUs and NODES worker nodes of two CPUs each, for sweeps of one or two chains. Use as a context
    manager."""

    def __init__(self, chains: int) -> None:
        self._ratios = RATIOS[:chains]
        self.trials = TRIALS_OF_A_CHAIN * len(self._ratios)

    def __enter__(self) -> "Bench":
        access.restrict()
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_host": "127.0.0.1",
                "dashboard_port": free_port(),  # there may be other heads on this machine
                "_system_config": HEALTH,
            },
        )
        for _ in range(NODES):
            self.add_node()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def add_node(self) -> None:
        """Add a worker node."""
        self._cluster.add_node(num_cpus=2)

    def lose_node(self, node) -> None:
        """Kill all processes of a worker node at once, and put another node in its place."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.add_node()

    def has(self, node) -> bool:
        """Return whether a worker node is part of the cluster."""
        return node in self._cluster.worker_nodes

    def warn_node(self, node, seconds: float) -> None:
        """Give the notice that a spot machine gets before it is taken away."""
        deadline_ms = int((time.time() + seconds) * 1000)
        GcsClient(address=self._cluster.address).drain_node(
            node.node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "spot notice", deadline_ms
        )

    def busy_node(self, role: str):
        """Return a worker node that runs a process of that role, or None."""
        for node in self._cluster.worker_nodes:
            raylets = [info.process.pid for info in node.all_processes["raylet"]]
            if any(found for pid in raylets for found in processes(role, psutil.Process(pid))):
                return node
        return None

    def driver(self, store: Store, log: Path, *extra: str) -> "Driver":
        """Start the sweep."""
        arguments = [*SWEEP, *self._ratios, *OPTIONS, "--store", store.url, *extra]
        return Driver(arguments, log, os.environ | {"RAY_ADDRESS": str(self._cluster.address)})


class Driver:
    """One run of the job, its output in a file."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    def done(self) -> list[str]:
        """Return the labels of the trials that it ran to their end."""
        return re.findall(r"done +(\S+) in", self.log.read_text())


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes(role: str, root: psutil.Process | None = None) -> list[psutil.Process]:
    """Return descendants of this process whose title ends with ``role``, a regular expression for the end of their
    title."""
    found = []
    for process in (root or psutil.Process()).children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.Error:  # it ended meanwhile
            continue
        if re.search(rf"^ray::(.*:)?{role}$", title.strip()):
            found.append(process)
    return found
