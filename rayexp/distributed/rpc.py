"""Calls to actors: names, placement, and waits that have a time limit and name the actor in their errors."""

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
    """Return a unique name for the dashboard: the role, and a random suffix.

    Actors and their placement groups outlive a stage, so they can't be named after one; the calls to them can.
    """
    return f"{role}-{secrets.token_hex(4)}"


def calling(actor: Any, method: str, stage: Stage, **options: Any) -> Any:
    """Return an actor's method whose calls have the stage's label in the dashboard's tasks and timeline.

    They do not have the step, because Ray keeps a metric for every name that a task ever had.
    """
    return getattr(actor, method).options(name=f"{stage.label}: {method}", **options)


def this_call() -> str:
    """Return the name of the call that this actor is answering. Return an empty string in any other process, where a
    question to Ray would start a cluster, or log a warning."""
    if global_worker.mode != WORKER_MODE:
        return ""
    return ray.get_runtime_context().get_task_name() or ""


def placed(bundle: int) -> dict[str, Any]:
    """Return options that put an actor into one bundle of this trial's placement group; none outside of a group.

    Without them Ray may put a small sampler into the learner's bundle, and the learner then fits nowhere.
    """
    group = get_current_placement_group()
    if group is None:
        return {}
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)}


def answer(reference: Any, who: str, timeout_s: float) -> Any:
    """Return the value behind an object reference.

    Raises RemoteTimeoutError if there is none in time, and RayActorError if the actor died. Raises the actor's own
    exception with ``who`` in the message: a PermanentError as it is, any other as a StageError.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise RemoteTimeoutError(
            f"no answer from {who} within {number(timeout_s)} s; raise timeout_s if it is only slow"
        ) from error
    except RayTaskError as error:
        cause = error.cause
        kind = type(cause) if isinstance(cause, PermanentError) else StageError
        raise kind(f"{who}: {sentence(cause)}") from error
