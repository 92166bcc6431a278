"""The central question on word problems in natural language with worked answers, on OOD prompts.

On the axis ``depth`` ID problems take at most three steps, OOD ones four; on the axis ``template`` OOD problems are of
other kinds. Many chains are right, so Q is counted among sampled completions, and the mass of the gold chain is a lower
bound of it.
"""

from typing import Literal

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, decoder_for, stage_chains
from rayexp.studies.presets import Budget
from rayexp.tasks.text import GSMTask

AXES: tuple[Literal["depth", "template"], ...] = ("depth", "template")
#: Templates of each cell, where they are not to be all.
TEMPLATES = {"toy": 2}
#: Its sequences are ten times as long as strings, so it has to do with less at the scale of a laptop.
OWN_GRID = {"tiny": {"ood_ratios": (0.0, 0.03, 0.3), "kl_betas": (0.1,), "seeds": (0,)}}


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    grid.require_no_strings()
    tasks = [task_of(axis, budget) for axis in AXES]
    decoder = decoder_for(budget, max(tasks, key=lambda task: task.max_tokens))
    return [stage for task in tasks for stage in stage_chains(task, budget, grid, ("ood",), decoder)]


def task_of(axis: Literal["depth", "template"], budget: Budget) -> GSMTask:
    """Return the task of an axis at a scale."""
    return GSMTask(axis=axis, templates=TEMPLATES.get(budget.name))
