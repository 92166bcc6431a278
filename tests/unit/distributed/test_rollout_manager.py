"""Rollout workers, without Ray."""

import torch

from rayexp.distributed.rollout_manager import Engine, RolloutWorker
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO


def test_a_rollout_worker_computes_in_the_threads_it_was_given_cores_for():
    """Ignore the numbers of OMP_NUM_THREADS and of the machine, because other numbers of threads round differently."""
    torch.set_num_threads(3)
    try:
        RolloutWorker(Engine(MICRO, VOCABULARY, 64, "torch", "fp32", "cpu", cpus=0.5, kv_cache_gib=None))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
