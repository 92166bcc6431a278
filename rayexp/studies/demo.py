"""The paper's central result in minutes: the composition axis, reinforced on OOD prompts.

Where pretraining gave the composition no mass, GRPO finds nothing; where it is saturated, GRPO adds nothing; in between
lies the gain. Completions are drawn by vLLM at every scale, because the demo is to show the machinery of a cluster.
"""

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.task("composition"), budget, grid, prompt_roles=("ood",), sampler="vllm")
