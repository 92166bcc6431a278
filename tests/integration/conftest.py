"""One real Ray cluster for all tests of this folder that a process runs."""

import pytest
import ray

from rayexp.distributed import runtime


@pytest.fixture(scope="session")
def cluster():
    """Start a local cluster with its dashboard; it has more CPUs than cores, so that nothing waits for a place."""
    yield runtime.connect(cpus=4)
    ray.shutdown()
