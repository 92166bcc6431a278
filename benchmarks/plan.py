"""Cost of a sweep's driver: the time and memory of planning the paper's whole grid."""

import json
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.measure import Row, Samples, publish

if TYPE_CHECKING:
    from rayexp.sweep.plan import Plan

STUDIES = ("depth", "length", "tokens", "composition")
SEEDS = 131  # some 100,000 stages
TARGET_S = 10.0
TARGET_MIB = 500
ROUNDS = 3
HANDED_OUT = 2_000
#: Largest number of seconds that the driver may take to hand out a trial, however long the plan is.
TARGET_SUGGEST_S = 0.002


def run() -> list[Row]:
    """Measure both in a child process that imports only what the driver imports."""
    command = [sys.executable, "-m", "benchmarks.plan", "child"]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    stages, seconds, suggest_s, imported, peak = json.loads(child.stdout.splitlines()[-1])
    timed = Samples(tuple(seconds))
    return [
        Row(
            case=f"{stages:,} unique stages",
            ours=timed.time(),
            ratio=f"{timed.best / TARGET_S:.2f}",
            target=f"< {TARGET_S:g} s",
            met=timed.best < TARGET_S,
        ),
        Row(
            case="suggest, a trial",
            ours=f"{suggest_s * 1e3:.2f} ms",
            ratio=f"{suggest_s / TARGET_SUGGEST_S:.2f}",
            target=f"< {TARGET_SUGGEST_S * 1e3:g} ms",
            met=suggest_s < TARGET_SUGGEST_S,
        ),
        Row(
            case="driver's peak memory",
            ours=f"{peak:.0f} MiB, {imported:.0f} of it imports",
            ratio=f"{peak / TARGET_MIB:.2f}",
            target=f"< {TARGET_MIB} MiB",
            met=peak < TARGET_MIB,
        ),
    ]


def plan_repeatedly() -> None:
    """Print, in the child, the number of stages, the seconds of each planning and of one suggestion, and the peak MiB
    after the imports and at the end."""
    import rayexp.sweep.scheduler  # noqa: F401  imported for its memory, as in the driver
    from rayexp.studies import STUDIES as ALL
    from rayexp.studies import Grid
    from rayexp.studies.presets import SCALES
    from rayexp.sweep.plan import Plan

    imported, seconds, stages = peak_mib(), [], 0
    budget = SCALES["paper"]
    for _ in range(ROUNDS):
        started = time.process_time()
        grid = Grid(budget.ood_ratios, budget.kl_betas, range(SEEDS))
        plan = Plan.of("paper", chain.from_iterable(ALL[name](budget, grid) for name in STUDIES), finished=())
        plan.summary()  # also groups the stages into trials
        seconds.append(time.process_time() - started)
        stages = len(plan.stages)
    print(json.dumps([stages, seconds, seconds_of_a_suggestion(plan), imported, peak_mib()]))


def seconds_of_a_suggestion(plan: "Plan") -> float:
    """Return the driver's time to hand out one trial of the plan and to process its end, without store and leases."""
    from rayexp.config import RunConfig
    from rayexp.sweep.scheduler import PlanSearcher

    class Nobody:
        """A stand-in for leases and store, without any other driver."""

        def holder(self, work: str) -> str:
            return ""

        def take(self, work: str) -> str:
            return work

        def release(self, work: str) -> None:
            pass

        def finished_ids(self, among: list[str]) -> set[str]:
            return set()

    searcher = PlanSearcher(plan.trials, RunConfig(), cast(Any, Nobody()), cast(Any, Nobody()))
    started = time.process_time()
    for number in range(HANDED_OUT):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), {})
    return (time.process_time() - started) / HANDED_OUT


def peak_mib() -> float:
    """Return the peak resident memory of this process. ru_maxrss is not used, because it starts from the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        plan_repeatedly()
    else:
        publish(run())
