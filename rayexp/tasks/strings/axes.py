"""The axes of generalisation: the split of cells into in-distribution ones, out-of-distribution ones and probes.

An axis is one declaration below; nothing else in the project names one. Pretraining always has samples of ``id`` cells,
a share ``ood_ratio`` of samples of ``ood`` cells, and none of ``probe`` cells. One thing changes along an axis. The
rest stays at length 4, alphabet A and at most two operations (notes on the paper: section 3; this reading: section 9).
"""

from dataclasses import dataclass, field

ROLES = ("id", "ood", "probe")


@dataclass(frozen=True)
class Cell:
    """A task: apply ``operations`` left to right to a string of ``length`` letters, ``foreign`` of them from B."""

    operations: str
    length: int = 4
    foreign: int = 0

    @property
    def name(self) -> str:
        """Return a short name, unique within an axis, e.g. ``TS``, ``TT.L5``, ``T.B2``."""
        parts = [self.operations]
        if self.length != 4:
            parts.append(f"L{self.length}")
        if self.foreign:
            parts.append(f"B{self.foreign}")
        return ".".join(parts)


@dataclass(frozen=True)
class Axis:
    """A named split into ID cells, OOD cells and probes. about: description in one line, for people."""

    name: str
    about: str
    id: tuple[Cell, ...]
    ood: tuple[Cell, ...]
    probe: tuple[Cell, ...] = field(default=())

    def cells(self, role: str) -> tuple[Cell, ...]:
        """Return the cells of one of ``ROLES``."""
        return {"id": self.id, "ood": self.ood, "probe": self.probe}[role]

    def roles(self) -> list[tuple[str, Cell]]:
        """Return every cell with its role, ID first."""
        return [(role, cell) for role in ROLES for cell in self.cells(role)]


def _traversals(*depths: int, length: int = 4, foreign: int = 0) -> tuple[Cell, ...]:
    return tuple(Cell("T" * depth, length, foreign) for depth in depths)


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis(
            "depth",
            "Known: one and two traversals. Asked for: three",
            id=_traversals(1, 2),
            ood=_traversals(3),
            probe=_traversals(4),
        ),
        Axis(
            "length",
            "Known: strings of four letters. Asked for: five",
            id=_traversals(1, 2),
            ood=_traversals(1, 2, length=5),
            probe=_traversals(1, 2, length=6),
        ),
        Axis(
            "tokens",
            "Known: the graph in one alphabet. Asked for: in another",
            id=_traversals(1, 2),
            ood=_traversals(1, 2, foreign=4),
            probe=_traversals(1, 2, foreign=1) + _traversals(1, 2, foreign=2) + _traversals(1, 2, foreign=3),
        ),
        Axis(
            "composition",
            "Known: traversal and shift, each by itself. Asked for: one after the other",
            id=(Cell("T"), Cell("TT"), Cell("S"), Cell("SS")),
            ood=(Cell("TS"), Cell("ST")),
            probe=(Cell("TTS"), Cell("SST")),
        ),
    )
}
