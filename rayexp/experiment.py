"""An experiment: a study, its scale, and the settings that differ from their defaults."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from rayexp.config import Count, Value
from rayexp.errors import not_among
from rayexp.stages import Stage
from rayexp.studies import Wanted, all_stages, is_adaptive, study_named, usual_grid, wanted_of
from rayexp.studies.conditions import changed
from rayexp.studies.grid import Grid
from rayexp.studies.looks import MAX_SEEDS, Undecided, place_of, planned_looks, unknown
from rayexp.studies.overrides import Override, apply_overrides, in_effect, parse_overrides
from rayexp.studies.presets import SCALES, Budget
from rayexp.studies.ratios import Measured, Search, search

#: Largest length of an experiment's name, which is also a folder's name.
NAME_LENGTH = 100
GRID = ("ood_ratios", "kl_betas", "seeds")
#: Share of OOD samples, or a word for shares that a search finds.
Ratio = float | Literal["auto", "low"]


def _texts(given: Any) -> Any:
    """Convert settings in a mapping, such as ``{"grpo.group_size": [4, 8]}``, into texts."""
    if not isinstance(given, Mapping):
        return given
    several = {name: value if isinstance(value, list | tuple) else [value] for name, value in given.items()}
    return tuple(f"{name}={','.join(map(_word, values))}" for name, values in several.items())


def _word(value: Any) -> str:
    return value if isinstance(value, str) and "," not in value else json.dumps(value)


def _several(given: Any) -> Any:
    """Convert a text into a sequence of one, so that ``"auto"`` needs no list."""
    return (given,) if isinstance(given, str) else given


def nothing(stage: Stage) -> None:
    """Return None, the results of a stage as if no stage were measured."""


def _with_limit(found: Search, looks: Sequence[Sequence[int]]) -> Search:
    """Add to the messages of a search what may come after it: seeds at later looks, and the most stages in all."""
    first, *later = (len(seeds) for seeds in looks)
    stages = found.limit or len({each.id for stage in found.stages for each in stage.lineage})
    messages = [*found.messages]
    if later:
        messages.append(
            f"seeds auto: {first} seeds, then {' and '.join(map(str, later))} where a verdict is undecided; "
            f"p-values are multiplied by {len(looks)}, the number of looks"
        )
    pilots = "; the costs in this plan are those of the pilot runs alone" if found.limit else ""
    messages.append(f"at most about {stages * len(looks[-1]) // first:,} stages in all{pilots}")
    return replace(found, messages=tuple(messages))


def _fit_for_a_folder(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(f"name={name!r} should be 1 to 100 letters, digits or _ . - and not begin with . or -")
    return name


class Experiment(Value):
    """A study and its settings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    study: str = "demo"
    """Name of a study, or module:function of your own."""
    scale: str = "tiny"
    """Size of the decoder and of the budgets: toy, tiny, small, paper."""
    ood_ratios: Annotated[tuple[Ratio, ...], Field(strict=False), BeforeValidator(_several)] = ()
    """Shares of OOD samples in pretraining, 0 to 0.5; by default those of the study or of the scale. auto: a few pilot
    runs find the ratios with a mean Q of the OOD cells near 0.001, 0.03, 0.3 and 0.9, and 0 and 0.5 are added. low: 0
    and the first two of these."""
    kl_betas: Annotated[tuple[float, ...], Field(strict=False)] = ()
    """Weights of the KL to the reference policy; by default those of the study or of the scale."""
    seeds: Annotated[tuple[int | Literal["auto"], ...], Field(strict=False), BeforeValidator(_several)] = ()
    """Seeds, one chain of stages for each; by default those of the study or of the scale. auto: begin with the default
    seeds, and double their number while a verdict is undecided, up to --max-seeds."""
    max_seeds: Count | None = None
    """Largest number of seeds with --seeds auto; by default 12."""
    graph: str = "hidden"
    """hidden: one cycle, which the decoder has to learn. printed: a fresh map in every prompt."""
    traversal: str = "uniform"
    """uniform: traversal and shift commute. positional: they do not."""
    completion_format: str = "answer"
    """answer: only the final string. trace: the string after every operation."""
    set: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_texts)] = ()
    """Any settings of the stages, as STAGE.SETTING=VALUE, such as grpo.group_size=16. Several values, separated by
    commas, become an axis of the grid, which is crossed with all others."""
    name: Annotated[str | None, AfterValidator(_fit_for_a_folder)] = None
    """Name of the folder below studies/ in the store; by default study, scale and all that is not usual. A study grows
    when other seeds, ratios or betas are run under the same name."""

    @model_validator(mode="after")
    def _seeds(self) -> Self:
        if self.max_seeds and "auto" not in self.seeds:
            raise ValueError(f"max_seeds={self.max_seeds} needs seeds='auto'")
        return self

    @cached_property
    def overrides(self) -> tuple[Override, ...]:
        return parse_overrides(self.set)

    @property
    def axes(self) -> frozenset[str]:
        """Return the names of the settings to which ``set`` gives several values."""
        return frozenset(override.name for override in self.overrides if len(override.values) > 1)

    @cached_property
    def folder(self) -> str:
        """Return the name of its folder of results below ``studies``."""
        if self.name is not None:
            return self.name
        usual = type(self).model_fields
        variants = [
            name for name in ("graph", "traversal", "completion_format") if getattr(self, name) != usual[name].default
        ]
        differing = [override.slug for override in in_effect(self._usual, self.overrides)] if self.overrides else []
        own = self.study.replace(":", ".")
        name = "-".join([own, self.scale, *(getattr(self, variant) for variant in variants), *differing])
        if len(name) <= NAME_LENGTH:
            return name
        return f"{name[: NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def resolved(self) -> "Experiment":
        """Return the same experiment with the grid and the name filled in."""
        grid = {name: getattr(self, name) or self._own_grid[name] for name in GRID}
        return self.model_copy(update={**grid, "name": self.folder})

    @property
    def adaptive(self) -> bool:
        """Return whether its stages depend on measured results."""
        return bool(self._words) or len(self.looks) > 1 or is_adaptive(study_named(self.study))

    def stages(self) -> list[Stage]:
        """Return the stages of the study before anything is measured. Raises as ``wanted`` does."""
        return self.wanted(nothing).stages

    def wanted(self, measured: Measured, undecided: Undecided = unknown) -> Search:
        """Return the stages and conditions of the study, given the results so far. undecided: used with seeds auto.

        Raises ValueError or ValidationError on an invalid setting.
        """
        looks = self.looks
        found = self._with_seeds(looks[0], measured)
        for before, seeds in pairwise(looks):
            places = undecided(found.wanted, len(looks))
            if places is None:
                return _with_limit(found, looks)
            more = self._with_seeds(seeds[len(before) :], measured)
            kept = changed(more.wanted, lambda stages, at=places: [each for each in stages if place_of(each) in at])
            found = replace(found, wanted=[*found.wanted, *kept])
        return found if found.limit is None else _with_limit(found, looks[:1])

    @property
    def looks(self) -> list[tuple[int, ...]]:
        """Return the seeds at each look at the results. Without seeds auto there is one look."""
        first = tuple(seed for seed in self.seeds if not isinstance(seed, str)) or self._own_grid["seeds"]
        return planned_looks(first, self.max_seeds or MAX_SEEDS) if "auto" in self.seeds else [first]

    def _with_seeds(self, seeds: Sequence[int], measured: Measured) -> Search:
        def at(ratios: Sequence[float], pilot: bool) -> list[Wanted]:
            return self._at(ratios, self.looks[0][:1] if pilot else seeds, measured)

        found = [search(at, measured, word) for word in self._words]
        fixed = at(self._fixed, False) if self._fixed else []
        limits = [one.limit for one in found if one.limit is not None]
        return Search(
            [*(each for one in found for each in one.wanted), *fixed],
            tuple(message for one in found for message in one.messages),
            sum(limits) + len(all_stages(fixed)) if limits else None,
        )

    def _at(self, ratios: Sequence[float], seeds: Sequence[int], measured: Measured) -> list[Wanted]:
        grid = self._grid(ratios, seeds)
        return apply_overrides(wanted_of(study_named(self.study), self._budget, grid, measured), self.overrides)

    def _grid(self, ratios: Sequence[float], seeds: Sequence[int]) -> Grid:
        return Grid(
            ratios,
            self.kl_betas or self._own_grid["kl_betas"],
            seeds,
            self.graph,
            self.traversal,
            self.completion_format,
        )

    @property
    def _asked(self) -> Sequence[float | str]:
        """Return the OOD ratios of the experiment, or of its study, with words for those that a search finds."""
        return self.ood_ratios or self._own_grid["ood_ratios"]

    @cached_property
    def _own_grid(self) -> dict[str, tuple[Any, ...]]:
        return usual_grid(self.study, self._budget)

    @property
    def _words(self) -> list[str]:
        return [each for each in dict.fromkeys(self._asked) if isinstance(each, str)]

    @property
    def _fixed(self) -> list[float]:
        return [each for each in self._asked if not isinstance(each, str)]

    @cached_property
    def _usual(self) -> Sequence[Wanted]:
        """Return the stages and conditions of the study before ``set`` changes them, with nothing measured."""
        grid = self._grid(self._fixed or self._budget.ood_ratios, self.looks[0])
        return wanted_of(study_named(self.study), self._budget, grid, nothing)

    @property
    def _budget(self) -> Budget:
        if self.scale not in SCALES:
            raise ValueError(not_among("scale", self.scale, SCALES))
        return SCALES[self.scale]
