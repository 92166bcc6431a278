"""Controlled experiments on what reinforcement learning adds to a language model beyond its pretraining.

    import rayexp

    experiment = rayexp.Experiment(study="demo", scale="toy", set={"grpo.group_size": [4, 8]})
    rayexp.plan(experiment)          # its stages, and which of them are finished; starts nothing
    rows = rayexp.run(experiment)    # runs the missing stages on Ray; returns a pandas frame, one row a prompt
    rayexp.figures(experiment)

Names are imported when they are first used, so ``import rayexp`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayexp.api import Figure, figures, plan, results, run
    from rayexp.config import RunConfig
    from rayexp.experiment import Experiment
    from rayexp.models.config import Decoder
    from rayexp.rewards import REWARDS, Reward
    from rayexp.stages import GRPO, RFT, SFT, AdamW, Evaluate, Extend, Pretrain, PromptShare, Stage
    from rayexp.studies import STUDIES, Grid
    from rayexp.studies.grid import stage_chains
    from rayexp.studies.presets import SCALES, Budget
    from rayexp.sweep.plan import Plan
    from rayexp.tasks import TASKS, FixedLengthTask, Task

_NAMES = {
    "rayexp.api": ("Figure", "figures", "plan", "results", "run"),
    "rayexp.config": ("RunConfig",),
    "rayexp.experiment": ("Experiment",),
    "rayexp.models.config": ("Decoder",),
    "rayexp.rewards": ("REWARDS", "Reward"),
    "rayexp.stages": ("GRPO", "RFT", "SFT", "AdamW", "Evaluate", "Extend", "Pretrain", "PromptShare", "Stage"),
    "rayexp.studies": ("STUDIES", "Grid"),
    "rayexp.studies.grid": ("stage_chains",),
    "rayexp.studies.presets": ("SCALES", "Budget"),
    "rayexp.sweep.plan": ("Plan",),
    "rayexp.tasks": ("TASKS", "FixedLengthTask", "Task"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
