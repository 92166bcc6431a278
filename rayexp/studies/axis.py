"""One axis of generalisation: GRPO on its ID prompts and on its OOD prompts, as two arms.

depth: pretrained on one and two traversals, asked for three and, as a probe, for four. length: strings of four letters,
then of five and, as a probe, of six. tokens: the same graph written in another alphabet. composition: traversal alone
and shift alone, then one of each, in both orders.
"""

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def axis_stages(axis: str, budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.task(axis), budget, grid, prompt_roles=("id", "ood"))
