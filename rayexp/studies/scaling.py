"""More layers, or wider ones: does the picture change with the decoder? Composition axis, OOD prompts.

Decoders of different sizes learn different amounts from one budget. So they are compared at about equal mass before
GRPO: the OOD ratios are found separately for each size.
"""

from rayexp.models.config import Decoder
from rayexp.stages import Stage
from rayexp.studies.grid import Grid, decoder_for, stage_chains
from rayexp.studies.presets import SCALES, Budget
from rayexp.tasks import Task

OWN_GRID = {scale: {"ood_ratios": ("auto",)} for scale in SCALES}
#: Numbers of layers, at the width of the scale.
LAYERS = {"toy": (4, 8), "tiny": (2, 4, 8, 16), "small": (4, 16, 32), "paper": (4, 16, 32)}
#: Widths, as multiples of the scale's width, at ``LAYERS_OF_WIDTHS`` layers.
WIDTHS = {"toy": (), "tiny": (0.5, 2), "small": (0.5, 2), "paper": (0.5,)}
LAYERS_OF_WIDTHS = 4


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    task = grid.task("composition")
    return [
        stage
        for decoder in decoders(budget, task)
        for stage in stage_chains(task, budget, grid, prompt_roles=("ood",), decoder=decoder)
    ]


def decoders(budget: Budget, task: Task) -> list[Decoder]:
    """Return decoders of several depths, and of several widths with the head size of the scale."""
    usual = budget.decoder
    deep = [decoder_for(budget, task, layers=layers) for layers in LAYERS[budget.name]]
    wide = [
        decoder_for(
            budget,
            task,
            layers=LAYERS_OF_WIDTHS,
            **{name: int(factor * getattr(usual, name)) for name in ("width", "ff_width", "heads", "kv_heads")},
        )
        for factor in WIDTHS[budget.name]
    ]
    return [*deep, *wide]
