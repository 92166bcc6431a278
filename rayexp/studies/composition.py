"""Composition: traversal alone and shift alone, then one of each, in both orders.

GRPO runs on ID and on OOD prompts, as two arms.
"""

from rayexp.spec import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.world("composition"), budget, grid, prompts=("id", "ood"))
