"""Input length: strings of four letters, then of five (and, as a probe, of six).

GRPO runs on ID and on OOD prompts, as two arms.
"""

from rayexp.spec import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.world("length"), budget, grid, prompts=("id", "ood"))
