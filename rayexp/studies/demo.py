"""The paper's central result in minutes: the composition axis, with GRPO on OOD prompts.

If pretraining gave the composition no mass, GRPO finds nothing. If the mass is saturated, GRPO adds nothing. In between
lies the gain. vLLM draws the completions at every scale, because the demo has to show the machinery of a cluster.
"""

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget

#: At ``tiny``: the lowest ratio, the highest, and the one with the largest gain of those that ``--ood-ratios auto``
#: found; one beta; and enough seeds to decide where the gain is (docs/findings.md).
OWN_GRID = {"tiny": {"ood_ratios": (0.0, 0.0075, 0.3), "kl_betas": (0.1,), "seeds": (0, 1, 2, 3)}}


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    return stage_chains(grid.task("composition"), budget, grid, prompt_roles=("ood",), sampler="vllm")
