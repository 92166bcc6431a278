"""Make finished stages again, because their code has changed: code is no part of an id, so nothing else runs them.

What is replaced is not lost: it is moved to ``replaced/`` in the store just before the first stage runs, when nothing
can be refused any more.
"""

from collections.abc import Iterable, Sequence

from rayexp.errors import RefusedError
from rayexp.formatting import one_line
from rayexp.stages import Stage
from rayexp.store.artifacts import Store
from rayexp.store.index import StoreIndex, find
from rayexp.store.leases import Leases
from rayexp.sweep.plan import Plan


def named(names: Iterable[str], plan: Plan) -> tuple[Stage, ...]:
    """Return the stages of a plan that are named (id, beginning of one, or label) and those that are built on them.

    Raises ValueError or AmbiguousError as ``index.find`` does.
    """
    meant = {find(name, plan.labels, of="a stage of this plan") for name in names}
    return tuple(stage for stage in plan.stages if meant & {each.id for each in stage.lineage})


def beyond(again: Sequence[Stage], plan: Plan, index: StoreIndex) -> list[str]:
    """Say which finished stages are built on what is made again and, not being of this plan, stay as they are."""
    made = {stage.id for stage in again}
    above = tuple(f"{stage.label}/" for stage in again)
    planned = {stage.id for stage in plan.stages}
    labels = index.labels() if again else {}
    some = [i for i, label in labels.items() if i not in planned and label.startswith(above)]
    return [
        one_line(f"not of this plan, and left as it is: {labels[stage_id]} ({stage_id}), built on what is made again")
        for stage_id, spec in index.specs(some).items()
        if made & {each.id for each in spec.lineage}
    ]


def set_aside(again: Sequence[Stage], plan: Plan, store: Store) -> list[str]:
    """Move what the store has of these stages to ``replaced/``, and drop their checkpoints. Say what went where.

    Raises RefusedError, before anything is moved, if another driver is running one of them.
    """
    with Leases(store.files) as leases:
        for trial in dict.fromkeys(map(plan.trial_of, again)):
            if not leases.take(trial):
                raise RefusedError(f"force: {trial} is being run by {leases.holder(trial)}; stop that, or wait for it")
        moved = [(stage, store.set_aside(stage.id)) for stage in reversed(again)]  # nothing stays without its parents
    return [f"made again: {stage.label} ({stage.id}); the old one is {place}" for stage, place in moved if place]
