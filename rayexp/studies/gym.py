"""The central question on three public generators of reasoning-gym, on OOD prompts.

ID cells are sums of two and three one-digit terms, words of three to five letters to be spelt backward, and paths of
three edges in a star of two arms. OOD cells have one term, letter or edge more.
"""

from dataclasses import replace

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, decoder_for, stage_chains
from rayexp.studies.presets import SCALES, Budget
from rayexp.tasks.text import AXES, axis

OWN_GRID = {scale: {"ood_ratios": ("auto",)} for scale in SCALES}
#: Largest number of test questions of a cell. Of sums of two and three one-digit terms hardly more are held out.
QUESTIONS = 300


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    grid.require_no_strings()
    budget = replace(budget, prompts_per_cell=min(budget.prompts_per_cell, QUESTIONS))
    tasks = [axis(name) for name in AXES]
    decoder = decoder_for(
        budget, max(tasks, key=lambda task: task.max_tokens)
    )  # one context length for all, so that only the tasks differ
    return [stage for task in tasks for stage in stage_chains(task, budget, grid, ("ood",), decoder)]
