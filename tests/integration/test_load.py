"""A plan of some length in one driver: its leftovers, and its effect on the driver's memory."""

import pytest

from tests.chaos import load


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_plan_leaves_nothing_behind(cluster, tmp_path):
    """Run the short form; ``python -m tests.chaos.load`` runs 320 stages."""
    memory, left = load.run(load.Arguments(chains=1, reinforced=5), str(tmp_path))
    assert memory.seen[-1][0] == 4 + 2 * 5
    assert memory.growth(warm_up=6) < load.GROWTH_MIB
    assert not left
