"""Gain in time, and cost in the result, of drawing the next rollouts while the learner works.

Both arms start from the same decoders and see the same prompts. vLLM and the learner have a core each.
"""

import time
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import Row, publish
from rayexp.config import RunConfig
from rayexp.distributed import runtime
from rayexp.evaluation.metrics import cluster_bootstrap
from rayexp.execution import rollout_loop, supervised
from rayexp.stages import GRPO, Evaluate, Stage
from rayexp.store.artifacts import Store
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import SCALES

SEEDS = (0, 1, 2)
RATIO, BETA = 0.01, 0.1


def run() -> list[Row]:
    budget = SCALES["tiny"]
    grid = Grid((RATIO,), (BETA,), SEEDS)
    runtime.connect(cpus=4)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    q: dict[int, list[np.ndarray]] = {0: [], 1: []}
    with TemporaryDirectory() as folder:
        run_config, store = RunConfig(store=folder), Store(folder)
        wanted = stage_chains(grid.task("composition"), budget, grid, prompt_roles=("ood",))
        for fresh in [stage for stage in wanted if isinstance(stage, GRPO)]:
            supervised.run_in_process(list(fresh.lineage[:-1]), run_config, lambda report: None)
            rollout_loop.run(
                fresh.model_copy(update={"steps": 2}), [], run_config, lambda report: None
            )  # starts the actors
            for staleness, found in seconds.items():
                stage = fresh.model_copy(update={"staleness": staleness})
                evaluation = Evaluate.model_validate({"init": stage, "prompts_per_cell": budget.prompts_per_cell})
                started = time.monotonic()
                rollout_loop.run(stage, [evaluation], run_config, lambda report: None)
                found.append(time.monotonic() - started)
                q[staleness].append(mass(store, evaluation))
    difference = cluster_bootstrap([stale - on for on, stale in zip(q[0], q[1], strict=True)])
    ratio = float(np.median(np.array(seconds[0]) / np.array(seconds[1])))
    mean = {staleness: float(np.concatenate(values).mean()) for staleness, values in q.items()}
    return [
        Row("staleness 1 : 0, a stage", f"{min(seconds[1]):.1f} s", f"{min(seconds[0]):.1f} s", f"{ratio:.2f}"),
        Row("mean Q of OOD cells after", f"{mean[1]:.3f}", f"{mean[0]:.3f}", f"{difference.mean:+.3f}"),
        Row("the difference, 95 %", f"{difference.low:+.3f} to {difference.high:+.3f}, {len(SEEDS)} seeds, paired"),
    ]


def mass(store: Store, evaluation: Stage) -> np.ndarray:
    """Return Q of every OOD test prompt."""
    rows = store.table(evaluation.id, "results.parquet").to_pandas()
    return np.exp(rows[rows["role"] == "ood"]["log_mass"].to_numpy())


if __name__ == "__main__":
    publish(run())
