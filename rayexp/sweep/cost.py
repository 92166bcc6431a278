"""The cost of a plan: time and storage of each stage, and of all stages on the machines at hand.

If the store has similar finished stages (same kind, device and number of workers, a decoder of half to twice the
parameters), the time is the median of their times per FLOP, taken from those nearest in FLOP. Otherwise it comes from
``ASSUMED``. It is a rough estimate, to decide whether to start: "minutes, not days".
"""

import heapq
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from rayexp.config import RunConfig
from rayexp.parts import unread_parts
from rayexp.stages import Pool, Stage, kind_in
from rayexp.store.artifacts import CHECKPOINTS_KEPT
from rayexp.store.index import Finished, StoreIndex
from rayexp.sweep.plan import Plan


@dataclass(frozen=True)
class Throughput:
    """FLOP/s of one CPU core or one GPU, seconds that a step costs besides, and seconds until the first one."""

    flop_per_s: float
    step_s: float = 0.0
    start_s: float = 0.0


#: By device, and by the pool that runs a stage. CPU: one core of a 2024 server in fp32 trains decoders of 0.4M, 3M and
#: 40M parameters at 48, 71 and 79 GFLOP/s; rollouts are drawn token by token, at half of that. GPU: published logs of
#: decoders of width 512 on an H100 come to 2e14 FLOP/s, a fifth of its peak; a step launches kernels for 10 ms at
#: least, a GRPO step moves weights and samples for half a second. A GRPO stage starts vLLM, which takes 10 s.
ASSUMED: dict[tuple[str, Pool], Throughput] = {
    ("cpu", "train"): Throughput(5e10),
    ("cpu", "rollout"): Throughput(2.5e10, start_s=10.0),
    ("cpu", "measure"): Throughput(5e10),
    ("cuda", "train"): Throughput(2e14, step_s=0.01),
    ("cuda", "rollout"): Throughput(1e14, step_s=0.5, start_s=10.0),
    ("cuda", "measure"): Throughput(2e14, step_s=0.01),
}
#: A decoder below this width does not fill a GPU; its speed falls in proportion.
FILLS_A_GPU = 512
#: Stages of each kind that are read, and how many similar ones, nearest in FLOP, count.
SAMPLES, NEAREST = 64, 9
#: Weights are kept in fp32; a checkpoint also has Adam's two moments.
WEIGHT_BYTES, CHECKPOINT_BYTES = 4, 12
#: Of an artifact's other files together, and of one row of its table of results, compressed.
RECORD_BYTES, ROW_BYTES = 6_000, 40


@dataclass(frozen=True)
class ObservedRun:
    """A finished stage, and the time that it took."""

    kind: str
    device: str
    workers: int
    parameters: int
    flop: float
    seconds: float


@dataclass(frozen=True)
class StageCost:
    """Estimates for one stage: FLOP, seconds once it is its turn, and bytes of its artifact. measured: number of
    finished stages that the time comes from; 0 where it is assumed."""

    flop: float
    seconds: float
    measured: int
    bytes: float


class CostModel:
    """Estimates of time and storage for stages that are run with a resolved RunConfig."""

    def __init__(self, run_config: RunConfig, samples: Iterable[ObservedRun] = ()) -> None:
        self.run_config = run_config
        self._samples = list(samples)
        self._costs: dict[str, StageCost] = {}
        self._times: dict[tuple[Any, ...], tuple[float, int]] = {}

    @classmethod
    def of(cls, index: StoreIndex, run_config: RunConfig, finished_ids: Collection[str]) -> "CostModel":
        """Return a model that is based on the times of finished stages: those of ``finished_ids`` first, then those of
        any study in the store, up to ``SAMPLES`` of each kind."""
        kinds: dict[str, list[str]] = {}
        for stage_id in dict.fromkeys([*sorted(finished_ids), *sorted(index.planned())]):
            kinds.setdefault(kind_in(stage_id), []).append(stage_id)
        some = [stage_id for ids in kinds.values() for stage_id in ids[:SAMPLES]]  # ids are hashes: a fair choice
        finished = index.finished(some)
        specs = {i: spec for i, spec in index.specs(some).items() if i in finished and not unread_parts(spec)}
        return cls(run_config, filter(None, (_sample(finished[i], specs[i]) for i in specs)))

    def cost(self, stage: Stage) -> StageCost:
        """Return the estimates for a stage."""
        if stage.id not in self._costs:
            self._costs[stage.id] = StageCost(stage.flops, *self._time(stage), _bytes(stage))
        return self._costs[stage.id]

    def seconds(self, stages: Iterable[Stage]) -> float:
        """Return the seconds of some stages, run one after the other."""
        return sum(self.cost(stage).seconds for stage in stages)

    def checkpoint_bytes(self, plan: Plan, trials_at_once: int) -> float:
        """Return the most bytes of checkpoints at one time: for each running trial those kept and one being written."""
        largest = max((stage.trained_parameters for stage in plan.to_run if stage.pool != "measure"), default=0)
        return CHECKPOINT_BYTES * largest * (CHECKPOINTS_KEPT + 1) * min(trials_at_once, len(plan.trials))

    def _time(self, stage: Stage) -> tuple[float, int]:
        """Return the seconds of a stage, and the number of finished stages that the estimate comes from."""
        flop = stage.flops
        key = stage.kind, stage.root.parameters, flop, stage.steps
        if key not in self._times:
            alike = [sample for sample in self._samples if self._alike(sample, stage)]
            near = heapq.nsmallest(NEAREST, alike, key=lambda sample: abs(math.log(_ratio(flop, sample.flop))))
            scaled = [sample.seconds * _ratio(flop, sample.flop) for sample in near]
            self._times[key] = (statistics.median(scaled) if near else self._assumed(stage)), len(near)
        return self._times[key]

    def _alike(self, sample: ObservedRun, stage: Stage) -> bool:
        workers = _workers(stage, self.run_config.train_workers, self.run_config.rollout_workers)
        same = (sample.kind, sample.device, sample.workers) == (stage.kind, self.run_config.device, workers)
        return same and 0.5 <= sample.parameters / stage.root.parameters <= 2

    def _assumed(self, stage: Stage) -> float:
        run_config = self.run_config
        speed = ASSUMED[run_config.device, stage.pool]
        unit = "gpus" if run_config.device == "cuda" else "cpus"
        share = {name: float(getattr(run_config, f"{name}_{unit}") or 0.0) for name in ("train", "learner", "rollout")}
        units = share["learner"] + share["rollout"] * run_config.rollout_workers
        if stage.pool != "rollout":
            units = share["train"] * run_config.train_workers
        filled = min(1.0, stage.root.decoder.width / FILLS_A_GPU) if unit == "gpus" else 1.0
        return speed.start_s + speed.step_s * stage.steps + stage.flops / (speed.flop_per_s * filled * (units or 1.0))


def _ratio(flop: float, other: float) -> float:
    """Return how many times the work of another stage a stage has. A pretrained model that is brought into the store
    has no FLOP, and as much work as the next one."""
    return flop / other if flop and other else 1.0


def makespan(plan: Plan, seconds: Callable[[Iterable[Stage]], float], trials_at_once: int) -> float:
    """Return the seconds until all trials of a plan have run, ``trials_at_once``, each once its parents have ended."""
    took = {trial.id: seconds(trial.stages) for trial in plan.trials}
    graph = TopologicalSorter({trial.id: trial.parents for trial in plan.trials})
    graph.prepare()
    ready = list(reversed(graph.get_ready()))
    running: list[tuple[float, str]] = []
    now = 0.0
    while graph.is_active():
        while ready and len(running) < trials_at_once:
            trial = ready.pop()
            heapq.heappush(running, (now + took[trial], trial))
        now, done = heapq.heappop(running)
        graph.done(done)
        ready += graph.get_ready()
    return now


def _bytes(stage: Stage) -> float:
    if stage.pool == "measure":
        return RECORD_BYTES + ROW_BYTES * stage.rows
    return RECORD_BYTES + WEIGHT_BYTES * stage.root.parameters


def _sample(finished: Finished, stage: Stage) -> ObservedRun | None:
    """Return the observation of a finished stage; None if its record lacks its duration or its workers."""
    run_config = finished.provenance.get("run_config")
    if not isinstance(run_config, Mapping) or not finished.duration_s:
        return None
    train_workers, rollout_workers = run_config.get("train_workers"), run_config.get("rollout_workers")
    if not isinstance(train_workers, int) or not isinstance(rollout_workers, int):
        return None
    about = (stage.kind, str(run_config.get("device")), _workers(stage, train_workers, rollout_workers))
    try:
        return ObservedRun(*about, stage.root.parameters, stage.flops, finished.duration_s)
    except ValueError:  # the length of its questions is unknown, because their generator is not installed
        return None


def _workers(stage: Stage, train_workers: int, rollout_workers: int) -> int:
    """Return the number of workers that take part in a stage."""
    return {"train": train_workers, "rollout": rollout_workers, "measure": 1}[stage.pool]
