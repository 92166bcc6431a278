"""Waiting for actors: every wait has a limit and says whom it waited for."""

from typing import Any

import ray
from ray.exceptions import GetTimeoutError


class RemoteTimeoutError(RuntimeError):
    """An actor did not answer in time."""


def answer(reference: Any, who: str, timeout_s: float) -> Any:
    """The value behind an object reference (or a list of them). Raises RemoteTimeoutError, or what the actor raised."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise RemoteTimeoutError(f"no answer from {who} within {timeout_s:g} s") from error
