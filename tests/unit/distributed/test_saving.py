"""The times at which a running stage saves itself."""

import pytest

from rayexp.config import RunConfig
from rayexp.distributed.saving import Saving


def saved_at(seconds, **settings):
    """Return the seconds of a stage's life at which it saves, if it can save at every full second."""
    now = 0.0
    saving = Saving(RunConfig(**settings), lambda: now)
    found = []
    while now < seconds:
        now += 1.0
        if saving.due():
            found.append(now)
            saving.done()
    return found


def test_checkpoints_come_soon_and_then_ever_more_seldom():
    """Lose at most half of the time spent, and spend little time on checkpoints."""
    assert saved_at(240) == [6, 17, 38, 79, 140, 201]


def test_checkpoints_that_take_long_are_few():
    """Let each take 3 seconds. Then they are at least a minute apart, unless the setting asks for a shorter time."""
    now, found = 0.0, []
    saving = Saving(RunConfig(checkpoint_every_s=600), lambda: now)
    while now < 200:
        now += 1.0
        if saving.due():
            found.append(now)
            now += 3.0
            saving.done()
    assert found == [6, 70, 194]


@pytest.mark.parametrize(("every", "expected"), [(0.0, [1, 2, 3, 4]), (2.0, [3])])
def test_they_never_come_later_than_is_asked_for(every, expected):
    assert saved_at(4, checkpoint_every_s=every) == expected


def test_a_stage_whose_node_is_announced_to_go_saves_at_once_and_once():
    saving = Saving(RunConfig(), lambda: 0.0)
    assert not saving.due()
    saving.hasten()
    assert saving.due()
    saving.done()
    assert not saving.due()
