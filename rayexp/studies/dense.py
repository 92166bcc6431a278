"""Rewards for letters, on every axis: does the gain follow the mass of right answers, or that of the rarest token?

Without a KL, or with one in the loss, a reward for letters reinforces each right letter separately. So it should find
answers that a reward for answers can't find, if each letter has some mass, however small the product Q of these masses.
"""

from typing import Any

from rayexp.rewards.letters import Letters
from rayexp.rewards.letters_sum import LettersSum
from rayexp.rewards.steps import Steps
from rayexp.studies.conditions import CONTROL, Condition
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import Budget
from rayexp.tasks.strings import AXES

SAYS = "The gain follows the mass of single letters, not that of the whole answer."
SOURCE = "arXiv 2509.21016"


def stages(budget: Budget, grid: Grid) -> list[Condition]:
    rewards: dict[str, Any] = {"letters": Letters(), "sum of letters": LettersSum()}
    if grid.completion_format == "trace":
        rewards["steps"] = Steps()
    settings = {CONTROL: {}, **{name: {"rewards": (reward,)} for name, reward in rewards.items()}}
    return [
        Condition(
            name,
            stage_chains(grid.task(axis), budget, grid, ("ood",), **grpo),
            "" if name == CONTROL else SAYS,
            "" if name == CONTROL else SOURCE,
        )
        for axis in AXES
        for name, grpo in settings.items()
    ]
