"""``make demo`` as a whole: its wall clock, and the share of it that is neither training nor sampling nor scoring.

The provenance of a stage has the seconds of its parts. A trial uses one core at a time, so the capacity of a sweep is
its wall clock times the number of concurrent trials. Capacity beyond training, sampling, judging and measuring is
overhead: imports, starts, weight syncs, checkpoints, files, reports, and cores without a trial.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Row, publish
from rayexp.config import RunConfig
from rayexp.distributed import runtime
from rayexp.experiment import Experiment
from rayexp.stages import GRPO, Evaluate
from rayexp.store.artifacts import Store
from rayexp.sweep import placement, preflight, scheduler
from rayexp.sweep.plan import Plan
from rayexp.sweep.progress import Progress

#: Parts of a stage that are work and not overhead. ``PhaseTimer`` times them.
WORK = ("samples", "learn", "rollout", "reward")
MINUTES, OVERHEAD, FIRST_STEP_S, EVALUATION = 8.0, 0.25, 2.0, 0.05


class Starts(Progress):
    """Seconds from each trial's start to its first report, by the driver's clock."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, lambda stage: stage.flops)
        self.first_s: dict[str, float] = {}

    def report(self, trial_id: str, result: dict[str, Any]) -> None:
        self.first_s.setdefault(trial_id, time.monotonic() - self.running[trial_id].since)
        super().report(trial_id, result)


def run(study: str = "demo", scale: str = "tiny") -> list[Row]:
    started = time.monotonic()
    plan = Plan.of(study, Experiment(study=study, scale=scale).stages(), ())
    starts = Starts(plan)
    runtime.connect()
    with TemporaryDirectory() as folder:
        run_config = RunConfig(store=folder).resolve(num_gpus=placement.total(preflight.capacity())["GPU"])
        at_once = preflight.concurrency(plan, run_config)
        outcome = scheduler.run(plan, run_config, starts)
        if outcome.failed or outcome.blocked:
            raise RuntimeError(f"the sweep failed: {outcome}")
        wall_s = time.monotonic() - started
        work_s, measured_s, parts = spent(plan, Store(folder))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20
    overhead = 1 - (work_s + measured_s) / (wall_s * at_once)
    # The first trial of each place starts its actors. Later trials reuse them.
    warm = sorted(starts.first_s[trial.id] for trial in plan.trials if isinstance(trial.stages[0], GRPO))[:-at_once]
    share = measured_s / (work_s + measured_s)
    return [
        Row(
            f"{study}-{scale}, {len(plan.trials)} trials",
            f"{wall_s / 60:.1f} min, {size:.0f} MiB",
            target=f"<= {MINUTES:g} min",
            met=wall_s <= 60 * MINUTES,
        ),
        Row(
            "overhead",
            f"{overhead:.0%} of {at_once} trials' time",
            target=f"<= {OVERHEAD:.0%}",
            met=overhead <= OVERHEAD,
        ),
        Row("where the rest goes", ", ".join(f"{name} {s / (work_s + measured_s):.0%}" for name, s in parts.items())),
        Row(
            "warm GRPO trial to step 1",
            f"{warm[len(warm) // 2]:.1f} s, at most {warm[-1]:.1f} s",
            target=f"<= {FIRST_STEP_S:g} s",
            met=warm[len(warm) // 2] <= FIRST_STEP_S,
        ),
        Row("evaluation", f"{share:.1%} of the work", target=f"< {EVALUATION:.0%}", met=share < EVALUATION),
    ]


def spent(plan: Plan, store: Store) -> tuple[float, float, dict[str, float]]:
    """Return the seconds of work on training stages, the seconds of measuring, and both by part."""
    parts: dict[str, float] = {}
    for stage in plan.stages:
        record = store.provenance(stage.id)
        if isinstance(stage, Evaluate):
            parts["measure"] = parts.get("measure", 0.0) + record["duration_s"]
        for name in WORK:
            key = f"{stage.id.partition('-')[0]} {name}"
            if name in record["seconds"]:
                parts[key] = parts.get(key, 0.0) + record["seconds"][name]
    measured = parts["measure"]
    return sum(parts.values()) - measured, measured, parts


if __name__ == "__main__":
    publish(run())
