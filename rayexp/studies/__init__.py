"""The science: each study is a function from (budget, grid) to the stages, or conditions, that it needs.

Every axis of ``StringTask`` has a study of the same name. Every module of this package with a function ``stages`` is a
study as well, named after the module with hyphens.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from rayexp.errors import not_among
from rayexp.parts import is_own
from rayexp.studies.axis import axis_stages
from rayexp.studies.conditions import CONTROL, Condition, Wanted, all_stages, conditions_in
from rayexp.studies.grid import Grid
from rayexp.studies.own import own_study
from rayexp.studies.presets import Budget
from rayexp.studies.ratios import Measured
from rayexp.tasks.strings import AXES

#: A function of (budget, grid), or of (budget, grid, measured) if its stages depend on measured results.
Study = Callable[..., Sequence[Wanted]]
_OWN = {module.name.replace("_", "-"): import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
STUDIES: dict[str, Study] = {
    **{axis: partial(axis_stages, axis) for axis in AXES},
    **{name: module.stages for name, module in sorted(_OWN.items()) if hasattr(module, "stages")},
}
#: One line about each study, for people.
SUMMARIES: dict[str, str] = {
    **{name: axis.about for name, axis in AXES.items()},
    **{name: (module.__doc__ or "").partition("\n")[0].rstrip(".") for name, module in _OWN.items() if name in STUDIES},
}


def wanted_of(study: Study, budget: Budget, grid: Grid, measured: Measured) -> Sequence[Wanted]:
    """Return the stages and conditions of a study, given the results so far. Equal results must give equal stages."""
    return study(budget, grid, measured) if is_adaptive(study) else study(budget, grid)


def usual_grid(name: str, budget: Budget) -> dict[str, tuple[Any, ...]]:
    """Return the default OOD ratios, betas and seeds of a study: its own, or else those of its scale. The ratios may be
    a word (``ratios.AIMS``)."""
    usual = {"ood_ratios": budget.ood_ratios, "kl_betas": budget.kl_betas, "seeds": budget.seeds}
    return usual | getattr(_OWN.get(name), "OWN_GRID", {}).get(budget.name, {})


def is_adaptive(study: Study) -> bool:
    """Return whether a study's stages depend on measured results, that is, whether it takes a third argument."""
    return len(inspect.signature(study).parameters) > 2


def study_named(name: str) -> Study:
    """Return a study by its name in ``STUDIES``, or a user's own by its import path. Raises ValueError if there is no
    such study."""
    if is_own(name):
        return own_study(name)
    if name not in STUDIES:
        raise ValueError(not_among("study", name, [*STUDIES, "module:function of your own"]))
    return STUDIES[name]


__all__ = [
    "CONTROL",
    "STUDIES",
    "SUMMARIES",
    "Condition",
    "Grid",
    "Study",
    "Wanted",
    "all_stages",
    "conditions_in",
    "is_adaptive",
    "study_named",
    "usual_grid",
    "wanted_of",
]
