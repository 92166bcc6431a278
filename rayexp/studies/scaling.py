"""Decoder depth: does the picture change with 4, 16 and 32 layers? Composition axis, OOD prompts."""

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, decoder_for, stage_chains
from rayexp.studies.presets import Budget

#: Layers by scale; a decoder of 16 layers does not train in a tiny budget.
LAYERS = {"toy": (4, 8), "tiny": (4, 8), "small": (4, 16, 32), "paper": (4, 16, 32)}


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    task = grid.task("composition")
    return [
        stage
        for layers in LAYERS[budget.name]
        for stage in stage_chains(
            task,
            budget,
            grid,
            prompt_roles=("ood",),
            decoder=decoder_for(budget, task, layers=layers),
        )
    ]
