"""The task of strings: its settings, and the lengths of the samples of each cell."""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rayexp.config import name_in
from rayexp.tasks.base import ROLES, FixedLengthTask, Solution, Verdict, Vocabulary
from rayexp.tasks.strings import generator, operations, verifier
from rayexp.tasks.strings.axes import AXES, Cell
from rayexp.tasks.strings.symbols import ALPHABET, SEMICOLON, VOCABULARY


class StringTask(FixedLengthTask):
    """Traversals and shifts of a string of letters.

    axis: difference between ID and OOD cells, a name in ``AXES``. graph: ``hidden`` (G1, one cycle, never shown) or
    ``printed`` (G2, a fresh map in every prompt). traversal: ``uniform``, or ``positional`` (C2: T and S do not
    commute). completion_format: ``answer`` (only the final string) or ``trace`` (the string after every operation; the
    gold trace is then not the only right completion). seed: of the hidden cycle.
    """

    kind: Literal["strings"] = "strings"
    axis: Annotated[str, name_in(AXES)]
    graph: Literal["hidden", "printed"] = "hidden"
    traversal: Literal["uniform", "positional"] = "uniform"
    completion_format: Literal["answer", "trace"] = "answer"
    seed: int = Field(default=0, ge=0)

    @property
    def label(self) -> str:
        variant = [part for part in (self.graph, self.traversal, self.completion_format) if part not in USUAL]
        return "-".join([self.axis, *variant])

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARY

    @property
    def unique(self) -> bool:
        return self.completion_format == "answer"

    def cells(self, role: str) -> tuple[str, ...]:
        return tuple(cell.name for cell in AXES[self.axis].cells(role))

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        axis = AXES[self.axis]
        return {cell.name: cell for role in ROLES for cell in axis.cells(role)}

    @cached_property
    def cycle(self) -> np.ndarray:
        """Return the hidden graph: the next letter of each of the 52."""
        return operations.hidden_cycle(self.seed)

    def prompt_tokens(self, cell: str) -> int:
        """Return the length of ``<bos> [map ;] letters : operations =``."""
        its, printed = self._cells[cell], 0
        if self.graph == "printed":
            alphabets = 1 if its.foreign in (0, its.length) else 2
            printed = 2 * ALPHABET * alphabets + 1
        return 1 + printed + its.length + 1 + len(its.operations) + 1

    def completion_tokens(self, cell: str) -> int:
        its = self._cells[cell]
        steps = 1 if self.unique else len(its.operations)
        return steps * (its.length + 1)

    def max_completion_tokens(self, cell: str) -> int:
        """Return the gold length. For traces add the length of one string, to allow a detour."""
        return self.completion_tokens(cell) + (0 if self.unique else self._cells[cell].length + 1)

    def write(self, split: str, seed: int, cell: str, index_N: np.ndarray) -> np.ndarray:
        cycle = self.cycle if self.graph == "hidden" else None
        positional = self.traversal == "positional"
        return generator.write(self._cells[cell], split, seed, index_N, cycle, positional, trace=not self.unique)

    def solve(self, prompt: Sequence[int]) -> Solution:
        steps = verifier.solve(prompt, self.cycle, self.traversal == "positional")
        written = steps[-1:] if self.unique else steps
        gold = [token for step in written for token in (SEMICOLON, *step)][1:]
        return Solution((*gold, VOCABULARY.eos), tuple(map(tuple, steps)))

    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        return verifier.judge(solution.steps, completion, trace=not self.unique)


#: Values of settings that a label omits.
USUAL = ("hidden", "uniform", "answer")
