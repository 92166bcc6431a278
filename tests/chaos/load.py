"""A long plan of tiny stages: ``python -m tests.chaos.load --chains 20``.

Prints what the driver's memory does and what is left in the cluster at the end, both of which have to be nothing much.
"""

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import psutil
import pyarrow as pa
import ray
import tyro
from ray.util.state import list_actors, list_placement_groups

from rayexp.config import RunConfig
from rayexp.distributed import runtime
from rayexp.stages import Stage
from rayexp.store.artifacts import Store
from rayexp.sweep import scheduler
from rayexp.sweep.plan import Plan
from rayexp.sweep.progress import Progress
from tests.fixtures.factories import evaluate, grpo, pretrain, sft

#: MiB by which the driver may grow once it has seen everything there is to see.
GROWTH_MIB = 100.0
#: Seconds until what a sweep used is given back.
SETTLED_S = 10.0


@dataclass
class Arguments:
    """A plan of ``chains`` x (4 + 2 x ``reinforced``) stages."""

    chains: int = 20
    """Chains of pretraining and SFT."""
    reinforced: int = 6
    """GRPO stages of each chain."""
    warm_up: int = 50
    """Stages after which the driver is to stay as it is."""


class Memory:
    """A view that notes, at the end of every trial, the stages finished by then and the driver's memory in MiB."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seen: list[tuple[int, float]] = []

    def __call__(self) -> None:
        ended = self._progress.ended
        for i in range(len(self.seen), len(ended)):
            finished = sum(len(each.trial.stages) for each in ended[: i + 1])
            self.seen.append((finished, psutil.Process().memory_info().rss / 2**20))

    def growth(self, warm_up: int) -> float:
        """Return by how much memory grew after the first stages, at most."""
        later = [mib for finished, mib in self.seen if finished >= warm_up]
        return max(later) - later[0]


def stages(chains: int, reinforced: int) -> list[Stage]:
    """Return tiny stages; GRPO with the sampler that needs no engine."""
    wanted: list[Stage] = []
    for seed in range(chains):
        base = pretrain(seed=seed, samples=300)
        tuned = sft(base)
        wanted += [evaluate(base), evaluate(tuned)]
        for i in range(reinforced):
            learnt = grpo(tuned, seed=i, steps=2, sampler="torch")
            wanted += [learnt, evaluate(learnt)]
    return wanted


def held() -> dict[str, int]:
    """Return the things in the cluster, and those open in this process."""
    gc.collect()
    address = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    used = ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0.0)
    return {
        "actors": len(list_actors(address, filters=[("state", "!=", "DEAD")], limit=10_000)),
        "placement groups": len(list_placement_groups(address, filters=[("state", "!=", "REMOVED")], limit=10_000)),
        "bytes of shared memory": int(used),
        "files": psutil.Process().num_fds(),
        "threads": psutil.Process().num_threads(),
    }


def settled(before: dict[str, int], count: Callable[[], dict[str, int]] = held) -> dict[str, int]:
    """Wait for new things to go; return those that stay."""
    deadline = time.monotonic() + SETTLED_S
    while True:
        now = count()
        left = {name: now[name] - before[name] for name in before if now[name] > before[name]}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def run(arguments: Arguments, folder: str) -> tuple[Memory, dict[str, int]]:
    """Run the plan on the connected cluster; the driver's memory, and what is left behind."""
    pa.set_io_thread_count(1)  # Arrow's pools start their threads one by one as they are needed, and keep them
    pa.set_cpu_count(1)
    run_config = RunConfig(store=folder, train_cpus=0.5, max_concurrent=3)
    first = grpo(sft(pretrain(seed=arguments.chains, samples=300)), steps=1, sampler="torch")
    scheduler.run(Plan.of("first", [first], ()), run_config)  # what Ray starts once, and keeps
    plan = Plan.of("load", stages(arguments.chains, arguments.reinforced), ())
    progress = Progress(plan, lambda stage: stage.flops)
    memory = Memory(progress)
    before = held()
    outcome = scheduler.run(plan, run_config, progress, [memory])
    if outcome.failed or outcome.blocked:
        raise RuntimeError(f"the plan failed: {outcome}")
    left = settled(before)
    missing = {stage.id for stage in plan.stages} - Store(folder).finished_ids()
    if missing:
        raise RuntimeError(f"not finished: {sorted(missing)}")
    return memory, left


def main() -> int:
    arguments = tyro.cli(Arguments, description=__doc__)
    runtime.connect(cpus=4)
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        memory, left = run(arguments, folder)
    ray.shutdown()
    for finished, mib in memory.seen[:: max(1, len(memory.seen) // 12)]:
        print(f"{finished:5d} stages finished   driver {mib:7.1f} MiB")
    growth = memory.growth(arguments.warm_up)
    print(
        f"{memory.seen[-1][0]} stages in {time.monotonic() - began:.0f} s; the driver grew by {growth:.1f} MiB "
        f"after the first {arguments.warm_up}; left behind: {left or 'nothing'}"
    )
    return 0 if growth <= GROWTH_MIB and not left else 1


if __name__ == "__main__":
    sys.exit(main())
