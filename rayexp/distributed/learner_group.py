"""The ranks of one learner: actors that form a group of torch.distributed before each stage.

The group is formed anew each time, because Ray may have restarted any of them since.
"""

from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rayexp.training.context import Ranks

_meeting_place: TCPStore | None = None


def open_meeting_place(timeout_s: float) -> tuple[str, int]:
    """Open the store in which the ranks find each other, in this process, which is rank 0. Return its host and port."""
    global _meeting_place
    host = ray.util.get_node_ip_address()
    _meeting_place = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    return host, _meeting_place.port


def meet(rank: int, ranks: int, place: tuple[str, int], timeout_s: float) -> Ranks:
    """Join the group as one rank of several, and return it once all have joined. timeout_s: longest wait for any rank,
    now and later."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    wait = timedelta(seconds=timeout_s)
    store = _meeting_place if rank == 0 else TCPStore(*place, timeout=wait)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=wait)
    return Group()


class Group:
    """This process among the ranks of its group; implements ``Ranks``."""

    def __init__(self) -> None:
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        machines = self.gather(ray.get_runtime_context().get_node_id())
        self.node = list(dict.fromkeys(machines)).index(machines[self.rank])

    def gather(self, value: Any) -> list[Any]:
        """See ``Ranks.gather``."""
        found = [value] * self.ranks
        torch.distributed.all_gather_object(found, value)
        return found
