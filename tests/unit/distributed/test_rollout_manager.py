"""Rollout workers, without Ray."""

import torch

from rayexp.distributed.rollout_manager import RolloutWorker
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO


def test_a_rollout_worker_computes_in_the_threads_it_was_given_cores_for():
    """And not in those that OMP_NUM_THREADS or the machine says, which round differently."""
    torch.set_num_threads(3)
    try:
        RolloutWorker(MICRO.model_dump_json(), VOCABULARY, "torch", "cpu", "fp32", cpus=0.5)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
