"""Advantages, places of the KL and group sizes that theory tells apart, at equal rollouts.

Composition axis, OOD prompts. Theory (``evaluation.fixed_point``) predicts, with the KL in the loss, that P rises with
the group size under ``group_std``, a little under ``mean_only`` and not under ``leave_one_out``. For groups of two the
last equals ``group_std``. With the KL in the reward, P is the paper's optimum at every size, unless rewards are divided
by a standard deviation. Betas of 0 are left out: without a KL nothing holds P below 1, and its place does not matter.
"""

from dataclasses import replace
from itertools import product

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget

KL_PLACES = ("loss", "reward")
ADVANTAGES = ("group_std", "mean_only", "leave_one_out")
GROUP_SIZES = (2, 8, 64)


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    rollouts = max(budget.grpo_prompts_per_step * budget.grpo_group_size, *GROUP_SIZES)
    grid = replace(grid, kl_betas=[beta for beta in grid.kl_betas if beta > 0])
    return [
        stage
        for kl_in, advantage, size in product(KL_PLACES, ADVANTAGES, GROUP_SIZES)
        for stage in stage_chains(
            grid.task("composition"),
            budget,
            grid,
            prompt_roles=("ood",),
            kl_in=kl_in,
            advantage=advantage,
            group_size=size,
            prompts_per_step=rollouts // size,
        )
    ]
