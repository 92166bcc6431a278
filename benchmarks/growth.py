"""Growth of cost: seconds and peak memory against each size that a user may increase.

The exponent is the slope on logarithmic axes from the smallest to the largest value. An exponent of 1 means growth in
proportion to the work; less is better. Each point is measured in a process of its own, in that process's CPU seconds.
Work in several processes (actors, ranks) is measured by the wall clock, on as many cores as the machine has.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Row, publish
from benchmarks.plan import peak_mib

#: Faster growth than this is explained in docs/performance.md, or mended.
TARGET = 1.1
ROUNDS = 3


@dataclass(frozen=True)
class Growth:
    """A size, its values, and its measurement, which is the name of a function of this module."""

    name: str
    values: tuple[int, ...]
    measure: str
    #: Factor by which the work grows from the first value to the last, if it differs from that of the value.
    work: float | None = None


GROWTHS = (
    Growth("prompts a GRPO step", (16, 64, 256), "prompts"),
    Growth("completions a prompt", (4, 16, 64), "group"),
    Growth("width of the decoder", (128, 256, 512), "width", work=16),
    Growth("layers of the decoder", (2, 8, 32), "layers"),
    Growth("stages in a plan", (120, 11_520, 100_608), "planned"),
)


def run() -> list[Row]:
    return [*(row(growth) for growth in GROWTHS), *by_wall_clock()]


def row(growth: Growth) -> Row:
    points = [point(growth.measure, value) for value in growth.values]
    seconds, memory = zip(*points, strict=True)
    work = growth.work or growth.values[-1] / growth.values[0]
    exponent = math.log(seconds[-1] / seconds[0]) / math.log(work)
    return Row(
        case=f"{growth.name}: {', '.join(f'{value:,}' for value in growth.values)}",
        ours=f"{', '.join(f'{s:.3g}' for s in seconds)} s; {', '.join(f'{m:,.0f}' for m in memory)} MiB",
        ratio=f"{exponent:.2f}",
        target=f"<= {TARGET}",
        met=exponent <= TARGET,
    )


def point(measure: str, value: int) -> tuple[float, float]:
    """Return seconds and peak MiB, measured in a child process."""
    command = [sys.executable, "-m", "benchmarks.growth", measure, str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def best(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the fastest of some rounds, after an untimed one."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


# Measurements in a child process


def grpo_step(prompts: int = 32, group: int = 8, **decoder: int) -> float:
    """Time one step of GRPO in this process: rollouts, rewards, reference, update."""
    import torch

    from benchmarks.step import Case, Parts, our_steps, reinforcement
    from rayexp.models.factory import build
    from rayexp.sampling.torch_sampler import TorchSampler

    torch.set_num_threads(1)
    spec = reinforcement(Case("tiny", ROUNDS), "fp32")
    root = spec.root.model_copy(update={"decoder": spec.root.decoder.model_copy(update=decoder)})
    init = spec.init.model_copy(update={"init": root})
    spec = spec.model_copy(update={"init": init, "prompts_per_step": prompts, "group_size": group})
    model, sampled = (build(spec.root.decoder, spec.root.task.vocabulary, seed=0) for _ in range(2))
    return best(our_steps(spec, model, TorchSampler(sampled), Parts()))


def planned(stages: int) -> float:
    """Time the planning of a study and the summary of its plan."""
    from rayexp.studies import STUDIES, Grid
    from rayexp.studies.presets import SCALES
    from rayexp.sweep.plan import Plan

    budget = SCALES["paper"]
    per_seed = len(
        Plan.of("", STUDIES["composition"](budget, Grid(budget.ood_ratios, budget.kl_betas, (0,))), ()).stages
    )

    def work() -> None:
        grid = Grid(budget.ood_ratios, budget.kl_betas, range(max(1, stages // per_seed)))
        plan = Plan.of("", STUDIES["composition"](budget, grid), ())
        plan.summary()

    return best(work)


MEASURES: dict[str, Callable[[int], float]] = {
    "prompts": lambda value: grpo_step(prompts=value),
    "group": lambda value: grpo_step(group=value),
    "width": lambda value: grpo_step(width=value, ff_width=3 * value, heads=value // 32, kv_heads=value // 32),
    "layers": lambda value: grpo_step(layers=value),
    "planned": planned,
}


# Measurements with several processes


def by_wall_clock() -> Iterator[Row]:
    """Yield rows on rollout actors, ranks and concurrent trials. They share the cores, so there is no target."""
    import ray

    from rayexp.distributed import runtime

    runtime.connect(cpus=8)
    cores = os.cpu_count()
    seconds = [rollouts(actors) for actors in (1, 2, 4)]
    yield Row(f"rollout actors on {cores} cores: 1, 2, 4", f"{listed(seconds)} s for the same completions")
    seconds = [ranks(workers) for workers in (1, 2)]
    yield Row(f"Train workers on {cores} cores: 1, 2", f"{listed(seconds)} s for the same stage, start included")
    seconds = [trials(at_once) for at_once in (1, 2, 4)]
    yield Row(f"trials at once on {cores} cores: 1, 2, 4", f"{listed(seconds)} s for the same eight trials")
    ray.shutdown()


def listed(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)


def rollouts(actors: int) -> float:
    """Return the seconds of the fastest of some generations by rollout workers."""
    import numpy as np
    import ray

    from benchmarks.step import Case, reinforcement
    from rayexp.config import RunConfig
    from rayexp.distributed.rollout_manager import RolloutManager
    from rayexp.models import factory
    from rayexp.rl.prompts import Prompts
    from rayexp.tasks.strings.symbols import VOCABULARY

    spec = reinforcement(Case("tiny", ROUNDS), "fp32").model_copy(update={"prompts_per_step": 256})
    rollout_manager = RolloutManager(spec, RunConfig(rollout_workers=actors))
    model = factory.build(spec.root.decoder, VOCABULARY, 0)
    rollout_manager.sync([ray.put({name: np.array(tensor) for name, tensor in model.state_dict().items()})], 0)
    prompts, seconds = Prompts(spec), []
    for step in range(1 + ROUNDS):
        started = time.monotonic()
        rollout_manager.generate(*prompts.at(step).request(spec.group_size))
        seconds.append(time.monotonic() - started)
    rollout_manager.stop()
    return min(seconds[1:])


def ranks(workers: int) -> float:
    """Return the seconds of a pretraining run in a worker group."""
    from benchmarks.step import Case, reinforcement
    from rayexp.config import RunConfig
    from rayexp.execution import supervised

    root = reinforcement(Case("tiny", ROUNDS), "fp32").root.model_copy(
        update={"samples": 40 * 256, "batch_samples": 256}
    )
    with TemporaryDirectory() as folder:
        started = time.monotonic()
        supervised.run([root], RunConfig(store=folder, train_workers=workers))
        return time.monotonic() - started


def trials(at_once: int) -> float:
    """Return the seconds of a sweep of eight pretraining runs."""
    from benchmarks.nodes import plan
    from rayexp.config import RunConfig
    from rayexp.sweep import scheduler

    chains = [stage.model_copy(update={"samples": 10_000}) for stage in plan(8).stages]
    with TemporaryDirectory() as folder:
        started = time.monotonic()
        scheduler.run(plan_of(chains), RunConfig(store=folder, max_concurrent=at_once))
        return time.monotonic() - started


def plan_of(stages: list[Any]) -> Any:
    from rayexp.sweep.plan import Plan

    return Plan.of("growth", stages, ())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps([MEASURES[sys.argv[1]](int(sys.argv[2])), peak_mib()]))
    else:
        publish(run())
