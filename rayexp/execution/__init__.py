"""Runners: each kind of stage is run by the module with the name of the kind.

A runner of the pool ``train`` has ``initial`` (the model to train), ``batch`` (samples of a step) and ``loss_start``
(the first token that counts), or ``run`` if it has no steps; one of the pool ``rollout`` has ``Learner``; one of the
pool ``measure`` has ``measure``.
"""

from importlib import import_module
from typing import Any

from rayexp.stages import Stage


def runner(stage: Stage) -> Any:
    """Return the module that runs stages of this kind."""
    return import_module(f"{__name__}.{stage.kind}")
