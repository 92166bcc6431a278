"""The central question on word problems in natural language with worked answers, on OOD prompts.

On the axis ``depth`` ID problems take at most three steps and OOD problems four. On the axis ``template`` OOD problems
have other templates. Many chains are right, so Q is estimated from sampled completions. The mass of the gold chain is a
lower bound of Q.
"""

from typing import Literal

from rayexp.stages import Stage
from rayexp.studies.grid import Grid, decoder_for, stage_chains
from rayexp.studies.presets import Budget
from rayexp.tasks.text import GSMTask

AXES: tuple[Literal["depth", "template"], ...] = ("depth", "template")
#: Templates of each cell, by scale, if not all are used.
TEMPLATES = {"toy": 2}
#: Smaller spending at the scale of a laptop, because sequences are ten times as long as strings.
OWN_GRID = {"tiny": {"ood_ratios": (0.0, 0.03, 0.3), "kl_betas": (0.1,), "seeds": (0,)}}


def stages(budget: Budget, grid: Grid) -> list[Stage]:
    grid.require_no_strings()
    tasks = [task_of(axis, budget) for axis in AXES]
    decoder = decoder_for(budget, max(tasks, key=lambda task: task.max_tokens))
    return [stage for task in tasks for stage in stage_chains(task, budget, grid, ("ood",), decoder)]


def task_of(axis: Literal["depth", "template"], budget: Budget) -> GSMTask:
    """Return the task of an axis at a scale."""
    return GSMTask(axis=axis, templates=TEMPLATES.get(budget.name))
