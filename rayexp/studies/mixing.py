"""Prompts in which one, two or three of four letters come from the other alphabet.

No pretraining run has seen such a prompt; GRPO is run on exactly these.
"""

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.task("tokens"), budget, grid, prompt_roles=("probe",))
