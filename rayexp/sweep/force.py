"""Make finished stages again after their code has changed. Code is not part of an id, so no other option runs them.

The old artifacts are not lost: they are moved to ``replaced/`` in the store just before the first stage runs, after
everything that may be refused.
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
    """Return the stages of a plan that are named (id, prefix of one, or label) and those that are built on them.

    Raises ValueError or AmbiguousError as ``index.find`` does.
    """
    meant = {find(name, plan.labels, of="a stage of this plan") for name in names}
    return tuple(stage for stage in plan.stages if meant & {each.id for each in stage.lineage})


def beyond(again: Sequence[Stage], plan: Plan, index: StoreIndex) -> list[str]:
    """Name the finished stages that are built on a stage that is made again, but stay because they are not in this
    plan."""
    made = {stage.id for stage in again}
    above = tuple(f"{stage.label}/" for stage in again)
    planned = {stage.id for stage in plan.stages}
    labels = index.labels() if again else {}
    some = [i for i, label in labels.items() if i not in planned and label.startswith(above)]
    return [
        one_line(f"not made again, because it is not in this plan: {labels[stage_id]} ({stage_id})")
        for stage_id, spec in index.specs(some).items()
        if made & {each.id for each in spec.lineage}
    ]


def set_aside(again: Sequence[Stage], plan: Plan, store: Store) -> list[str]:
    """Move the artifacts of these stages to ``replaced/``, and drop their checkpoints. Return a line for each.

    Raises RefusedError, before anything is moved, if another driver is running one of them.
    """
    with Leases(store.files) as leases:
        for trial in dict.fromkeys(map(plan.trial_of, again)):
            if not leases.take(trial):
                raise RefusedError(
                    f"force: the trial {trial} is running under the driver {leases.holder(trial)}; stop that sweep, or "
                    "wait until it ends"
                )
        moved = [(stage, store.set_aside(stage.id)) for stage in reversed(again)]  # nothing stays without its parents
    return [f"to be made again: {stage.label} ({stage.id}); the old one is {place}" for stage, place in moved if place]
