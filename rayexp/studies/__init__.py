"""The science: each study a function from (budget, grid) to the stages that it wants.

Every axis of ``StringTask`` has a study of its name; every module of this package with a function ``stages`` is one.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

from rayexp.stages import Stage
from rayexp.studies.axis import axis_stages
from rayexp.studies.grid import Grid
from rayexp.studies.presets import Budget
from rayexp.tasks.strings import AXES

Study = Callable[[Budget, Grid], list[Stage]]
_OWN = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
STUDIES: dict[str, Study] = {
    **{axis: partial(axis_stages, axis) for axis in AXES},
    **{name: module.stages for name, module in sorted(_OWN.items()) if hasattr(module, "stages")},
}

__all__ = ["STUDIES", "Grid", "Study"]
