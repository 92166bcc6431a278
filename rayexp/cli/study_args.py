"""A study as it is asked for on a command line: its name, its scale, and the grid where it is not the scale's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from rayexp.errors import not_among
from rayexp.stages import Stage
from rayexp.studies import STUDIES
from rayexp.studies.grid import Grid
from rayexp.studies.presets import SCALES

T = TypeVar("T")


@dataclass(frozen=True)
class StudyArgs:
    """A study, and the values that it varies."""

    study: str = "demo"
    """Name of a study; see rayexp/studies."""
    scale: str = "tiny"
    """Decoder and budgets: toy, tiny, small, paper."""
    ood_ratios: tuple[float, ...] = ()
    """Shares of OOD samples in pretraining, separated by blanks or commas; the scale's own if not given."""
    kl_betas: tuple[float, ...] = ()
    """Weights of the KL to the reference; the scale's own if not given."""
    seeds: tuple[int, ...] = ()
    """One chain of stages for each; the scale's own if not given."""
    graph: str = "hidden"
    """hidden: one cycle, to be learnt. printed: a fresh map in every prompt."""
    traversal: str = "uniform"
    """uniform, or positional: traversal and shift do not commute."""
    completion_format: str = "answer"
    """answer: only the final string. trace: the string after every operation."""

    @property
    def own_name(self) -> str:
        """Name the folder of its results below ``studies``: study, scale, and what of the task is not usual."""
        variants = ("graph", "traversal", "completion_format")
        variant = [getattr(self, name) for name in variants if getattr(self, name) != getattr(StudyArgs, name)]
        return "-".join([self.study, self.scale, *variant])

    def stages(self) -> list[Stage]:
        """Return what the study wants. Raises ValueError or ValidationError on a setting it can't have."""
        study, budget = _entry("study", self.study, STUDIES), _entry("scale", self.scale, SCALES)
        grid = Grid(
            self.ood_ratios or budget.ood_ratios,
            self.kl_betas or budget.kl_betas,
            self.seeds or budget.seeds,
            self.graph,
            self.traversal,
            self.completion_format,
        )
        return study(budget, grid)


def _entry(field: str, value: str, allowed: Mapping[str, T]) -> T:
    if value not in allowed:
        raise ValueError(not_among(field, value, allowed))
    return allowed[value]
