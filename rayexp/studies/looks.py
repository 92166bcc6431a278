"""Seeds that are added where a verdict is undecided, at looks that are planned beforehand.

Whoever looks several times, and stops when it looks good, is wrong more often than each look says. So a p-value counts
as many times as looks are planned (Bonferroni): whatever the looks have to do with each other, and whichever of them is
the last, at most one verdict in twenty is wrong.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import count, islice
from typing import TypeAlias

from rayexp.stages import Stage
from rayexp.studies.conditions import Wanted

#: Where nothing is said.
MAX_SEEDS = 12
#: Task and OOD ratio.
Place: TypeAlias = tuple[str, float]
#: From what is wanted at a look, and the number of looks that are planned: where a verdict is undecided; None while not
#: everything is finished.
Undecided: TypeAlias = Callable[[Sequence[Wanted], int], Collection[Place] | None]


def planned_looks(first: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Return the seeds of each look: at the first these, then twice as many, up to ``most``.

    Raises ValueError if there are more at the first.
    """
    if most < len(first):
        raise ValueError(f"max_seeds={most} should be at least {len(first)}, the number of seeds at the first look")
    more = (seed for seed in count() if seed not in first)
    seeds, sizes = [*first, *islice(more, most - len(first))], [len(first)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return [tuple(seeds[:size]) for size in sizes]


def place_of(stage: Stage) -> Place:
    """Return where a stage counts."""
    return stage.root.task.label, stage.root.ood_ratio


def unknown(wanted: Sequence[Wanted], looks: int) -> None:
    """Return what is undecided where no store is looked at."""
