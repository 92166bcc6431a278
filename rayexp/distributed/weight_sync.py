"""Transfer of weights from a learner to its samplers: through Ray's object store, or directly between processes.

The object store is right for small decoders: one copy goes to the host, and all samplers on a machine read it. With
gigabytes its copies over PCIe begin to count; Ray Direct Transport leaves the tensors on the GPUs.

``sync`` is the same for all. With the object store an actor that died is restarted alone. With the other transports it
can't, because no actor can join an NCCL group again. Its death then ends the attempt, and the trial goes on from its
last checkpoint with new actors.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rayexp.config import RunConfig
from rayexp.distributed.rpc import RemoteTimeoutError
from rayexp.errors import StageError, sentence
from rayexp.formatting import number
from rayexp.timeouts import NoAnswerError, run_with_timeout

#: Backends of the transports that need a group of actors.
_GROUPED = {"nccl": "nccl", "gloo": "torch_gloo"}
#: The name of a weight up to the number of its block.
_BLOCK = re.compile(r"^(\D*\.\d+\.).*")
#: Longest wait, in seconds, for Ray to forget a group whose actors have ended.
FORGET_S = 10.0


def chunks(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Divide weights, given their bytes by name, into parts of at most ``limit`` bytes. The weights of one block stay
    together, because a sampler may keep them as one tensor."""
    found: list[list[str]] = []
    room = 0
    for _, names in groupby(sizes, key=lambda name: _BLOCK.sub(r"\1", name)):
        block = list(names)
        size = sum(sizes[name] for name in block)
        if size > room:
            found.append([])
            room = limit
        found[-1] += block
        room -= size
    return found


def direct(run_config: RunConfig) -> bool:
    """Return whether weights bypass the object store."""
    return run_config.weight_transfer != "object_store"


def actor(kind: type, run_config: RunConfig) -> Any:
    """Return an actor class that can take part in the transfer, and that is restarted if the transfer allows it."""
    if direct(run_config):
        taking_part: Any = ray.remote(enable_tensor_transport=True, max_restarts=0)  # pyright: ignore[reportCallIssue]
        return taking_part(kind)
    return ray.remote(max_restarts=-1)(kind)


class TransferGroup:
    """The group of actors that pass weights on, the learner first. Its methods do nothing if a transfer needs no
    group."""

    def __init__(self, actors: Sequence[Any], run_config: RunConfig) -> None:
        self._actors = list(actors)
        self._backend = _GROUPED.get(run_config.weight_transfer)
        self._timeout_s = run_config.timeout_s
        self._handle: Any = None

    def join(self) -> None:
        """Form the group, and wait until all are in it. Raises RemoteTimeoutError, or StageError if one can't join."""
        if self._backend is None or self._handle is not None:
            return
        from ray.experimental.collective import create_collective_group

        who = "the actors that weights go between"
        try:  # Ray's own functions for groups wait without a limit
            self._handle = run_with_timeout(
                self._timeout_s, lambda: create_collective_group(self._actors, self._backend or ""), "join a group"
            )
        except NoAnswerError:
            raise RemoteTimeoutError(f"no answer from {who} within {number(self._timeout_s)} s") from None
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise StageError(f"{who}: {sentence(cause)}") from error

    def forget(self) -> None:
        """Make Ray forget the group, because Ray keeps the names of groups even of dead actors. Call this once the
        actors have ended.

        Never raises, because the failure that ended the actors matters more. Ray itself forgets a group in which a
        transfer failed (ValueError).
        """
        if self._handle is not None:
            from ray.experimental.collective import destroy_collective_group

            with suppress(NoAnswerError, RayError, ValueError):
                run_with_timeout(FORGET_S, lambda: destroy_collective_group(self._handle), "forget a group")
            self._handle = None
