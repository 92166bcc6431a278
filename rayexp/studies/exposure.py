"""The same OOD samples early, late or all along in pretraining, then GRPO.

Composition axis, GRPO on OOD prompts. The control sees OOD samples all along. Two further conditions start GRPO from
its decoder after a quarter and after half of its pretraining.
"""

from collections.abc import Sequence

from rayexp.stages import Stage
from rayexp.stages.extend import published_at
from rayexp.studies.conditions import CONTROL, Condition
from rayexp.studies.grid import Grid, fine_tuned, measured_chains, pretrained, reinforced
from rayexp.studies.presets import SCALES, Budget

OWN_GRID = {scale: {"ood_ratios": ("auto",)} for scale in SCALES}
SOURCE = "arXiv 2601.06103"
EARLY, LATE, YOUNG = (
    "What is seen early stays, and GRPO finds it.",
    "What was seen last is what GRPO finds.",
    "GRPO gains more from a decoder that is less far.",
)


def stages(budget: Budget, grid: Grid) -> list[Condition]:
    task = grid.task("composition")
    whole = pretrained(task, budget, grid)
    quarter = -(-whole[0].schedule_steps // 4)
    on_the_way = [published_at(base, (quarter, 2 * quarter)) for base in whole]

    def condition(name: str, bases: Sequence[Stage], says: str = "", source: str = SOURCE) -> Condition:
        tuned = [fine_tuned(base, budget) for base in bases]
        ends = [reinforced(init, budget, prompt_role="ood", kl_beta=grid.kl_beta) for init in tuned]
        return Condition(name, measured_chains(ends, budget), says, source)

    return [
        condition(CONTROL, [last for _, _, last in on_the_way], source=""),
        condition("early", pretrained(task, budget, grid, exposure="early"), EARLY),
        condition("late", pretrained(task, budget, grid, exposure="late"), LATE),
        condition("after a quarter", [first for first, _, _ in on_the_way], YOUNG),
        condition("after half", [second for _, second, _ in on_the_way], YOUNG),
    ]
