"""Seeds that are added while a verdict is undecided, at looks that are planned beforehand.

Looking at the results several times, and stopping when they look good, raises the error rate above that of one look. So
a p-value is multiplied by the number of planned looks (Bonferroni). Then at most one verdict in twenty is wrong,
however the looks depend on each other, and whichever of them is the last.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import count, islice
from typing import TypeAlias

from rayexp.stages import Stage
from rayexp.studies.conditions import Wanted

#: Default of ``max_seeds``.
MAX_SEEDS = 12
#: Label of a task, and OOD ratio.
Place: TypeAlias = tuple[str, float]
#: A function of the stages and conditions at a look, and the number of planned looks. It returns the places at which a
#: verdict is undecided, or None while a stage is unfinished.
Undecided: TypeAlias = Callable[[Sequence[Wanted], int], Collection[Place] | None]


def planned_looks(first: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Return the seeds of each look: ``first`` at the first look, then twice as many at each look, up to ``most``.

    Raises ValueError if ``first`` has more than ``most`` seeds.
    """
    if most < len(first):
        raise ValueError(f"max_seeds={most} should be at least {len(first)}, the number of seeds at the first look")
    more = (seed for seed in count() if seed not in first)
    seeds, sizes = [*first, *islice(more, most - len(first))], [len(first)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return [tuple(seeds[:size]) for size in sizes]


def place_of(stage: Stage) -> Place:
    """Return the place at which a stage counts."""
    return stage.root.task.label, stage.root.ood_ratio


def unknown(wanted: Sequence[Wanted], looks: int) -> None:
    """Return None, as if no stage were finished."""
