"""One axis of generalisation: GRPO on its ID prompts and on its OOD prompts, as two arms.

depth: one and two traversals are ID, three OOD, and four a probe. length: strings of four letters are ID, of five OOD,
and of six a probe. tokens: the same graph in another alphabet is OOD. composition: traversal alone and shift alone are
ID, and one of each, in both orders, is OOD.
"""

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def axis_stages(axis: str, budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.task(axis), budget, grid, prompt_roles=("id", "ood"))
