"""A study as it is asked for on a command line: its name, its scale, and the grid where it is not the scale's own."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from rayexp.errors import not_among
from rayexp.stages import Stage
from rayexp.studies import study_named
from rayexp.studies.grid import Grid
from rayexp.studies.overrides import Override, apply_overrides, in_effect, parse_overrides
from rayexp.studies.presets import SCALES

#: Characters of a study's name, which is a folder's.
NAME_LENGTH = 100


@dataclass(frozen=True)
class StudyArgs:
    """A study, and the values that it varies."""

    study: str = "demo"
    """Name of a study, or module:function for one of your own."""
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

    set: tuple[str, ...] = ()
    """Any settings of the stages, as STAGE.SETTING=VALUE, such as grpo.group_size=16. Several values, separated by
    commas, are an axis of the grid: each is run with each of the others."""

    @cached_property
    def overrides(self) -> tuple[Override, ...]:
        return parse_overrides(self.set)

    @property
    def axes(self) -> frozenset[str]:
        """Return the settings that --set gives several values."""
        return frozenset(override.name for override in self.overrides if len(override.values) > 1)

    @cached_property
    def own_name(self) -> str:
        """Name the folder of its results below ``studies``: study, scale, and what differs from the study's usual
        settings."""
        variants = ("graph", "traversal", "completion_format")
        variant = [getattr(self, name) for name in variants if getattr(self, name) != getattr(StudyArgs, name)]
        differing = [override.slug for override in in_effect(self._usual, self.overrides)] if self.overrides else []
        name = "-".join([self.study.replace(":", "."), self.scale, *variant, *differing])
        if len(name) <= NAME_LENGTH:
            return name
        return f"{name[: NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def stages(self) -> list[Stage]:
        """Return what the study wants. Raises ValueError or ValidationError on a setting it can't have."""
        return apply_overrides(self._usual, self.overrides)

    @cached_property
    def _usual(self) -> list[Stage]:
        """The stages of the study before ``set`` changes any."""
        study = study_named(self.study)
        if self.scale not in SCALES:
            raise ValueError(not_among("scale", self.scale, SCALES))
        budget = SCALES[self.scale]
        grid = Grid(
            self.ood_ratios or budget.ood_ratios,
            self.kl_betas or budget.kl_betas,
            self.seeds or budget.seeds,
            self.graph,
            self.traversal,
            self.completion_format,
        )
        return study(budget, grid)
