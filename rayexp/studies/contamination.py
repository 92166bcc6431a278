"""Copies of test items in pretraining, early or late, and what GRPO makes of them.

Composition axis, GRPO on OOD prompts. The OOD samples of pretraining are copies of a random half of some test items:
none, 1, 5 or 20 of each. The other half is the control within the same decoder. Both halves together are a fifth of the
test items, because copies of more items would teach the task itself.
"""

from collections.abc import Sequence

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, fine_tuned, pretrained, reinforced, with_evaluations
from rayexp.studies.presets import SCALES, Budget
from rayexp.tasks.strings import StringTask

TIMES = (0, 1, 5, 20)
TASK = StringTask(axis="composition")


def ratio_of(times: int, budget: Budget) -> float:
    """Return the OOD ratio at which each copied test item occurs ``times`` times."""
    copies = times * items_of(budget) // 2 * len(TASK.cells("ood"))
    ratio = copies / budget.pretrain_samples
    return ratio if int(budget.pretrain_samples * ratio) == copies else (copies + 0.5) / budget.pretrain_samples


def items_of(budget: Budget) -> int:
    """Return the number of test items of a cell of which half are copied: a fifth of the measured ones."""
    return budget.prompts_per_cell // 10 * 2


OWN_GRID = {name: {"ood_ratios": tuple(ratio_of(times, budget) for times in TIMES)} for name, budget in SCALES.items()}


def stages(budget: Budget, grid: Grid) -> Sequence[Stage]:
    found: list[Stage] = []
    for exposure in ("early", "late"):
        for base in pretrained(
            grid.task("composition"), budget, grid, copied_items=items_of(budget), exposure=exposure
        ):
            tuned = fine_tuned(base, budget)
            ends = [reinforced(tuned, budget, prompt_role="ood", kl_beta=beta) for beta in grid.kl_betas]
            found += with_evaluations([base, tuned, *ends], budget)
    return found
