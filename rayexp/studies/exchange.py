"""The exchange rate: the number of supervised OOD samples that gain as much as one run of GRPO. Composition axis.

Each condition has a number of OOD samples in SFT, and no GRPO. The control has none, and GRPO on OOD prompts.
"""

from rayexp.studies.conditions import CONTROL, Condition
from rayexp.studies.grid import Grid, fine_tuned, measured_chains, pretrained, reinforced
from rayexp.studies.presets import SCALES, Budget

OWN_GRID = {scale: {"ood_ratios": ("auto",)} for scale in SCALES}
#: Numbers of samples, about powers of the root of 10. A scale uses those up to the size of its SFT.
SAMPLES = (3, 10, 30, 100, 300, 1_000)


def stages(budget: Budget, grid: Grid) -> list[Condition]:
    bases = pretrained(grid.task("composition"), budget, grid)
    tuned = [fine_tuned(base, budget) for base in bases]
    control = [reinforced(init, budget, prompt_role="ood", kl_beta=grid.kl_beta) for init in tuned]

    return [
        Condition(CONTROL, measured_chains(control, budget)),
        *(
            Condition(
                f"{samples} OOD samples",
                measured_chains([fine_tuned(base, budget, ood_samples=samples) for base in bases], budget),
                f"{samples} supervised samples gain more than GRPO.",
                "arXiv 2604.15306",
            )
            for samples in SAMPLES
            if samples <= budget.sft_samples
        ),
    ]
