"""The text of ``--plan``: every stage with its state and cost, and the cost of all unfinished stages."""

from collections import Counter
from dataclasses import dataclass

from rich import filesize

from rayexp import host
from rayexp.config import RunConfig
from rayexp.formatting import one_line
from rayexp.parts import own_modules
from rayexp.stages import KINDS, Stage
from rayexp.store.index import StoreIndex, UnfinishedStage
from rayexp.store.provenance import code_here
from rayexp.store.provenance import other_code as made_by_other_code
from rayexp.sweep import memory_use, preflight
from rayexp.sweep.cost import ASSUMED, CostModel, Throughput, makespan
from rayexp.sweep.placement import Nodes, nodes_of, total
from rayexp.sweep.plan import Plan
from rayexp.terminal import Column, abbreviated, duration, table

COLUMNS = (
    Column("state"),
    Column("stage"),
    Column("FLOP", right=True, spare=True),
    Column("time", right=True),
    Column("size", right=True),
    Column("parent", spare=True),
    Column("label", cut=True),
)
MEANINGS = {
    "running": "a sweep is running it now",
    "failed": "the last attempt failed; the next sweep tries again",
    "blocked": "built on a failed stage; runs once that has succeeded",
}
FAILURES_SHOWN = 10


@dataclass(frozen=True)
class ClusterResources:
    """Resources to run on, and their name for people."""

    nodes: Nodes
    name: str

    @classmethod
    def here(cls) -> "ClusterResources":
        """Return what a local cluster would be started with."""
        has = {"CPU": float(host.cores()), "GPU": float(host.gpus() or 0), "memory": float(host.for_work() or 0)}
        return cls(nodes_of([has]), "this machine")

    @property
    def has(self) -> dict[str, float]:
        return total(self.nodes)

    @property
    def description(self) -> str:
        units = {"CPU core": self.has["CPU"], "GPU": self.has["GPU"]}
        counted = [f"{count:g} {unit}{'' if count == 1 else 's'}" for unit, count in units.items() if count]
        return f"{self.name} ({', '.join(counted) or 'nothing'})"


def states(plan: Plan, failed: set[str], running: set[str]) -> dict[str, str]:
    """Return the state of every stage by id: ``cached``, ``to run``, or a key of ``MEANINGS``. Trials by their ids."""
    found = dict.fromkeys((stage.id for stage in plan.stages), "cached")
    blocked = plan.descendants(failed)
    for trial in plan.trials:
        state = "running" if trial.id in running else "failed" if trial.id in failed else "to run"
        if trial.id in blocked and state == "to run":
            state = "blocked"
        found.update({stage.id: state for stage in trial.stages})
    return found


def render_plan(
    plan: Plan,
    index: StoreIndex,
    run_config: RunConfig,
    machines: ClusterResources,
    width: int | None = None,
    price: float | None = None,
) -> str:
    """Return the table of all stages, and below it failures, memory, time, storage and what sharing saves. ``width``:
    of the terminal, for which ids and columns are shortened; None for full lines. price: of an hour of all machines."""
    run_config = run_config.resolve(num_gpus=machines.has["GPU"])
    estimates = CostModel.of(index, run_config, plan.finished)
    failures = index.failures(trial.id for trial in plan.trials)
    state = states(plan, set(failures), index.running())
    name = abbreviated([stage.id for stage in plan.stages]) if width else {stage.id: stage.id for stage in plan.stages}

    def row(stage: Stage) -> tuple[str, ...]:
        cost = ("-", "-", "-")
        if state[stage.id] != "cached":
            all_of_it = estimates.cost(stage)
            cost = (f"{all_of_it.flop:.1e}", duration(all_of_it.seconds), filesize.decimal(int(all_of_it.bytes)))
        parent = name[stage.parent.id] if stage.parent else "-"
        return (state[stage.id], name[stage.id], *cost, parent, plan.labels[stage.id])

    counts = Counter(state.values())
    meanings = [f"{word}: {MEANINGS[word]}" for word in MEANINGS if counts[word]]
    parts = [
        table(COLUMNS, map(row, plan.stages), width),
        "\n".join([f"{len(plan.stages)} stages: " + ", ".join(f"{n} {word}" for word, n in counts.items()), *meanings]),
        "\n".join(_failed(failures)),
        memory_use.render(plan, run_config, width),
        "\n".join(
            [*_time(plan, estimates, run_config, machines, price), _storage(plan, estimates, run_config, machines)]
        ),
        _saved(plan, estimates),
    ]
    return "\n\n".join(filter(None, parts))


def other_code(plan: Plan, index: StoreIndex) -> list[str]:
    """Say how many cached stages of the plan were made by other code than this; nothing if none were."""
    records = index.records(plan.finished)
    counts = Counter(made_by_other_code(records.get(stage_id, {})) for stage_id in plan.finished)
    lines = [
        f"code: {count} of {len(plan.finished)} cached stages were made by {one_line(code)}"
        for code, count in counts.most_common()
        if code
    ]
    here = f"  the code here is {code_here(own_modules(plan.stages))}"
    return lines and [*lines, f"{here}; --force STAGE makes a stage again, and all stages built on it"]


def _failed(failures: dict[str, UnfinishedStage]) -> list[str]:
    lines = [one_line(f"failed: {attempt.id}: {attempt.why}") for attempt in failures.values()]
    more = [f"and {len(lines) - FAILURES_SHOWN} more; `rayexp ls` shows them"] if len(lines) > FAILURES_SHOWN else []
    return lines[:FAILURES_SHOWN] + more


def _time(
    plan: Plan, estimates: CostModel, run_config: RunConfig, machines: ClusterResources, price: float | None
) -> list[str]:
    """Say how long the unfinished stages take, where the estimate of each kind comes from, and what they cost."""
    if not plan.to_run:
        return ["time: none, because everything is in the store"]
    at_once = min(preflight.concurrency(plan, run_config, machines.nodes), len(plan.trials))
    costs = {stage.id: estimates.cost(stage) for stage in plan.to_run}
    span = makespan(plan, estimates.seconds, at_once)
    flop = sum(cost.flop for cost in costs.values())
    trials = f"{at_once} trial{'' if at_once == 1 else 's'} at once"
    lines = [
        f"time: about {duration(span)} on {machines.description}, {trials}; "
        f"{duration(estimates.seconds(plan.to_run))} one after the other, {flop:.1e} FLOP"
    ]
    kinds: dict[str, list[str]] = {}
    for kind, stage_type in KINDS.items():
        samples = [costs[stage.id].measured for stage in plan.to_run if stage.kind == kind]
        if samples:
            kinds.setdefault(_basis(samples, ASSUMED[run_config.device, stage_type.pool], run_config), []).append(kind)
    lines += [f"  {', '.join(alike)}: {basis}" for basis, alike in kinds.items()]
    if price is not None:
        lines.append(f"cost: about {span / 3600 * price:.2f}, at {price:g} an hour")
    return lines


def _basis(samples: list[int], speed: Throughput, run_config: RunConfig) -> str:
    """Say what the estimate for the stages of a kind is based on. samples: numbers of similar finished stages."""
    if all(samples):
        return f"from the times of {_range(samples)} similar finished stages in this store"
    unit = "GPU" if run_config.device == "cuda" else "CPU core"
    assumed = [f"{speed.flop_per_s:.2g} FLOP/s a {unit}"]
    assumed += [f"{speed.step_s:g} s a step"] * bool(speed.step_s)
    assumed += [f"{speed.start_s:g} s to start"] * bool(speed.start_s)
    number = f"{samples.count(0)} of {len(samples)} " if any(samples) else ""
    return f"{number}assumed at {' + '.join(assumed)}, because this store has no similar stage"


def _storage(plan: Plan, estimates: CostModel, run_config: RunConfig, machines: ClusterResources) -> str:
    if not plan.to_run:
        return "storage: nothing more"
    kept = sum(estimates.cost(stage).bytes for stage in plan.to_run)
    most = estimates.checkpoint_bytes(plan, preflight.concurrency(plan, run_config, machines.nodes))
    kept_text, most_text = (filesize.decimal(int(count)) for count in (kept, most))
    return f"storage: {kept_text} in {run_config.store}, and up to {most_text} of checkpoints while it runs"


def _saved(plan: Plan, estimates: CostModel) -> str:
    """Compare the whole plan, cached stages included, with one in which nothing is shared."""
    costs = [(estimates.cost(stage), plan.copies[stage.id]) for stage in plan.stages]
    if all(copies == 1 for _, copies in costs):
        return "sharing: no two chains of this plan have a stage in common"
    flop, flop_apart = sum(cost.flop for cost, _ in costs), sum(cost.flop * copies for cost, copies in costs)
    time, time_apart = sum(cost.seconds for cost, _ in costs), sum(cost.seconds * copies for cost, copies in costs)
    return (
        f"sharing: {len(costs)} stages instead of {sum(copies for _, copies in costs)}, {flop:.2g} FLOP instead of "
        f"{flop_apart:.2g}, {duration(time)} of work instead of {duration(time_apart)}"
    )


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
