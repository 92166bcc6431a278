"""Talking to actors: names for the dashboard, and waits that have a limit and say whom they waited for."""

import secrets
from typing import Any

import ray
from ray.exceptions import GetTimeoutError


class RemoteTimeoutError(RuntimeError):
    """An actor did not answer in time."""


def actor_name(role: str) -> str:
    """What the dashboard shows: the role, and something that no other actor of it has."""
    return f"{role}-{secrets.token_hex(4)}"


def answer(reference: Any, who: str, timeout_s: float) -> Any:
    """The value behind an object reference (or a list of them). Raises RemoteTimeoutError, or what the actor raised."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError as error:
        raise RemoteTimeoutError(f"no answer from {who} within {timeout_s:g} s") from error
