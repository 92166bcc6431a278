"""Reasoning depth: pretrained on one and two traversals, asked for three (and, as a probe, for four).

GRPO runs on ID and on OOD prompts, as two arms.
"""

from rayexp.spec import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.world("depth"), budget, grid, prompts=("id", "ood"))
