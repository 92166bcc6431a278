"""The log of rollouts: one row a completion of every step, and no row of an abandoned attempt."""

import io
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayexp.execution.rollout_log import RolloutLog
from rayexp.rl.prompts import PromptBatch
from rayexp.sampling.base import Completions
from rayexp.store.artifacts import Store
from rayexp.store.leases import LeaseLostError, Leases
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import tiny_chain

STEPS = 5
STAGE = tiny_chain(StringTask(axis="composition")).grpo


def attempt(store, steps, flush_at, enabled=True):
    """Log some steps, and flush before the steps with a checkpoint."""
    rollouts = RolloutLog(store, STAGE, enabled, first_step=steps.start)
    row = np.full((1, 1), VOCABULARY.eos)
    for step in steps:
        if step in flush_at:
            rollouts.flush()
        completions = Completions(row, np.zeros((1, 1), dtype=np.float32), np.ones(1, dtype=np.int64), step)
        prompts = PromptBatch(numbers=[0], prompts=[[VOCABULARY.eos]], seeds=[0], max_tokens=[1])
        rollouts.add(step, prompts, completions, np.zeros((1, 1), dtype=np.float32))
    return rollouts


def steps_of(rollouts):
    (table,) = rollouts.files(STEPS).values()
    return pq.read_table(io.BytesIO(table))["step"].to_pylist()


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


@pytest.mark.parametrize(("goes_on_at", "flush_at"), [(0, ()), (0, (3,)), (2, ()), (2, (3,)), (4, ())])
def test_no_row_of_an_abandoned_attempt_is_kept(store, goes_on_at, flush_at):
    """Let the first attempt write checkpoints before the steps 2 and 4, and lose the newest or both."""
    attempt(store, range(STEPS), flush_at=(2, 4))
    assert steps_of(attempt(store, range(goes_on_at, STEPS), flush_at)) == list(range(STEPS))


def test_an_attempt_that_keeps_no_rollouts_leaves_none_of_those_before_it(store, caplog):
    """Continue the third from a checkpoint of the second. Later rollouts of the first are not part of its past."""
    attempt(store, range(4), flush_at=(2, 3))
    attempt(store, range(2, 4), flush_at=(), enabled=False)
    with caplog.at_level(logging.WARNING):
        assert steps_of(attempt(store, range(4, STEPS), flush_at=())) == [0, 1, 4]
    assert "lacks 2 of 5 steps (the first is 2)" in caplog.text


def test_what_a_killed_process_left_half_written_is_no_part(store):
    attempt(store, range(STEPS), flush_at=(2,))
    store.files.write(f"work/{STAGE.id}/rollouts/000000000.parquet.0a1b2c3d.part", b"PAR")
    assert steps_of(attempt(store, range(2, STEPS), flush_at=())) == list(range(STEPS))


def test_an_attempt_that_has_lost_its_lease_neither_adds_nor_removes_rollouts(store):
    attempt(store, range(STEPS), flush_at=(2,))
    with Leases(store.files) as leases:
        lost = Store(store.url, str(leases.take(STAGE.id)))
        rollouts = attempt(lost, range(2, 4), flush_at=())
        leases.release(STAGE.id)
        with pytest.raises(LeaseLostError):
            rollouts.flush()
        with pytest.raises(LeaseLostError):
            attempt(lost, range(0), flush_at=())
    assert store.work_names(STAGE.id, "rollouts") == ["000000000.parquet"]
