"""The science: one file a figure, each a function from (budget, grid) to the stages it wants."""

from collections.abc import Callable

from rayexp.spec import Stage
from rayexp.studies import composition, demo, depth, length, mixing, scaling, tokens
from rayexp.studies.grid import Grid
from rayexp.studies.presets import Budget

Study = Callable[[Budget, Grid], list[Stage]]
STUDIES: dict[str, Study] = {
    "demo": demo.stages,
    "depth": depth.stages,
    "length": length.stages,
    "tokens": tokens.stages,
    "composition": composition.stages,
    "mixing": mixing.stages,
    "scaling": scaling.stages,
}

__all__ = ["STUDIES", "Grid", "Study"]
