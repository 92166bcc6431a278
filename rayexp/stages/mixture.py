"""Mixtures of prompts, as values, and the cells that get the places of a step.

Shape suffixes: _N places, _S steps, _K cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from rayexp.config import Value
from rayexp.errors import none_of
from rayexp.formatting import number
from rayexp.tasks import ROLES, Task


class PromptShare(Value):
    """Part of a mixture of prompts. kind: a cell, or a role, which stands for its cells in equal parts. weight: divided
    by the sum of all weights, it is the share of prompts that the part has."""

    kind: str
    weight: float = Field(default=1.0, gt=0, le=1e9)

    @property
    def label(self) -> str:
        """Its text in a label: ``0.5ood``."""
        return f"{'' if self.weight == 1 else number(self.weight)}{self.kind}"


@dataclass(frozen=True)
class CellShares:
    """Shares of cells among the prompts of a stage, in the first step and in the last; in between they change linearly.
    cells: all that have a share, in the order of the task."""

    cells: tuple[str, ...]
    first_K: np.ndarray
    last_K: np.ndarray

    @classmethod
    def of(cls, task: Task, first: Sequence[PromptShare], last: Sequence[PromptShare]) -> "CellShares":
        """Return the shares between two mixtures. Raises ValueError on a name that is neither a role nor a cell."""
        at_last = _shares(task, last, "mixture")
        at_first = _shares(task, first, "curriculum")
        cells = tuple(cell for _, cell in task.roles() if at_first[cell] or at_last[cell])
        return cls(cells, *(np.array([shares[cell] for cell in cells]) for shares in (at_first, at_last)))

    @property
    def mean_K(self) -> np.ndarray:
        """Mean shares over all steps."""
        return (self.first_K + self.last_K) / 2

    def prompts(self, count: int) -> np.ndarray:
        """Return the cell of each of ``count`` prompts, as its index in ``cells``, dealt by the mean shares."""
        return deal(np.broadcast_to(self.mean_K, (count, len(self.cells))))

    def without_prompts(self, count: int) -> list[str]:
        """Return the cells that get none of ``count`` prompts."""
        enough = (
            int(len(self.cells) / self.mean_K.min()) + 1
        )  # a cell is always fewer places behind than there are cells
        there = set(self.prompts(min(count, enough)).tolist())
        return [cell for i, cell in enumerate(self.cells) if i not in there]

    def places(self, steps: int, prompts_per_step: int) -> np.ndarray:
        """Return the cell of each place of all steps, one after the other."""
        done_S1 = np.linspace(0, 1, steps)[:, None]
        shares_SK = (1 - done_S1) * self.first_K + done_S1 * self.last_K
        return deal(np.repeat(shares_SK, prompts_per_step, axis=0))


def _shares(task: Task, mixture: Sequence[PromptShare], field: str) -> dict[str, float]:
    """Return the share of every cell of the task; they add up to 1."""
    roles = {role: task.cells(role) for role in ROLES if task.cells(role)}
    weights = dict.fromkeys((cell for _, cell in task.roles()), 0.0)
    for part in mixture:
        if part.kind not in roles and part.kind not in weights:
            raise ValueError(f"the part {part.kind!r} of {field} {none_of(part.kind, [*roles, *weights])}")
        members = roles.get(part.kind, (part.kind,))
        for cell in members:
            weights[cell] += part.weight / len(members)
    total = sum(weights.values())
    return {cell: weight / total for cell, weight in weights.items()}


def deal(shares_NK: np.ndarray) -> np.ndarray:
    """Return which cell gets each place: the one that is furthest behind its share so far, the first among equals.

    Where all cells have equal shares they take turns. ``shares_NK``: the share of each cell at each place.
    """
    behind_K, cell_N = np.zeros(shares_NK.shape[1]), np.empty(len(shares_NK), dtype=np.int64)
    for place, share_K in enumerate(shares_NK):
        behind_K += share_K
        cell_N[place] = cell = int(behind_K.argmax())
        behind_K[cell] -= 1
    return cell_N
