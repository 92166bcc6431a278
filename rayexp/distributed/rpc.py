"""Talking to actors: names, places, and waits that have a limit and say whom they waited for."""

import secrets
from typing import Any

import ray
from ray._private.worker import WORKER_MODE, global_worker
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayexp.errors import PermanentError, StageError, sentence
from rayexp.formatting import number
from rayexp.stages import Stage


class RemoteTimeoutError(StageError):
    """An actor did not answer in time."""


def unique(role: str) -> str:
    """A name for the dashboard: the role, and something that nothing else with it has.

    Actors and their placement groups outlive a stage, so they can't be named after one; the calls to them can.
    """
    return f"{role}-{secrets.token_hex(4)}"


def calling(actor: Any, method: str, stage: Stage, **options: Any) -> Any:
    """The method of an actor, so that the call bears the stage's label in the dashboard's tasks and timeline.

    Not the step: Ray keeps a metric for every name that a task ever had.
    """
    return getattr(actor, method).options(name=f"{stage.label}: {method}", **options)


def this_call() -> str:
    """Return the name of the call that this actor is answering; nothing in any other process, where to ask Ray for it
    would start a cluster, or log a warning."""
    if global_worker.mode != WORKER_MODE:
        return ""
    return ray.get_runtime_context().get_task_name() or ""


def placed(bundle: int) -> dict[str, Any]:
    """Options that put an actor into one bundle of this trial's placement group; none outside of a group.

    Left to choose, Ray may put a small sampler into the learner's bundle, and the learner then fits nowhere.
    """
    group = get_current_placement_group()
    if group is None:
        return {}
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}


def answer(reference: Any, who: str, timeout_s: float) -> Any:
    """The value behind an object reference.

    Raises RemoteTimeoutError, what says that the actor died (RayActorError), or what the actor raised: its
    PermanentError as that, anything else as a StageError, with ``who`` in the message.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise RemoteTimeoutError(f"no answer from {who} within {number(timeout_s)} s") from error
    except RayTaskError as error:
        cause = error.cause
        kind = type(cause) if isinstance(cause, PermanentError) else StageError
        raise kind(f"{who}: {sentence(cause)}") from error
