"""The memory of a plan as a table: what each kind of process takes in its largest stage."""

from rich import filesize

from rayexp.config import RunConfig
from rayexp.stages.memory import Memory, processes
from rayexp.sweep.plan import Plan
from rayexp.terminal import Column, table

PARTS = ("weights", "gradients", "optimiser", "activations", "cache", "process")
COLUMNS = (Column("memory of"), Column("in all", right=True), *(Column(part, right=True, spare=True) for part in PARTS))


def largest(plan: Plan, run_config: RunConfig) -> dict[str, Memory]:
    """Return the memory of each kind of process in its largest stage, by ``kind: process``."""
    found: dict[str, Memory] = {}
    for stage in plan.to_run:
        for name, memory in processes(stage, run_config).items():
            about = f"{stage.kind}: {name}"
            if about not in found or memory.total > found[about].total:
                found[about] = memory
    return found


def render(plan: Plan, run_config: RunConfig, width: int | None) -> str:
    """Return the table; empty if nothing is left to run."""
    rows = [
        (about, _bytes(memory.total), *(_bytes(getattr(memory, part)) for part in PARTS))
        for about, memory in largest(plan, run_config).items()
    ]
    return table(COLUMNS, rows, width) if rows else ""


def _bytes(count: float) -> str:
    return filesize.decimal(int(count)) if count else "-"
