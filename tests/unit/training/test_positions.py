"""Randomised positions: their values, training at them, and continuation of a run at the same ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rayexp.config import RunConfig
from rayexp.execution import supervised
from rayexp.models import factory
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.training.batch_loss import LossMeter, rank_loss
from rayexp.training.loss import next_token_loss
from rayexp.training.positions import with_random_positions
from rayexp.training.trainer import Trainer
from tests.fixtures.artifacts import weights_digest
from tests.fixtures.factories import MICRO, OPTIMISER, pretrain, sft

TASK = StringTask(axis="length")
RANDOMISED = MICRO.model_copy(update={"positions": "randomised"})
BASE = pretrain(task=TASK, decoder=RANDOMISED, samples=640)
CHAIN = [BASE, sft(BASE)]


def positions(samples):
    """Return the positions of the tokens of samples."""
    assert samples.positions_NT is not None
    return samples.positions_NT


def batch(cell="TT", count=4_000):
    return TASK.of_cell("pretrain", 0, cell, 0, count)


def test_positions_increase_over_a_range_that_is_longer_than_every_sample():
    longest = TASK.max_tokens
    for cell in ("T", "TT.L6"):
        positions_NT = positions(with_random_positions(batch(cell), 7, longest))
        assert positions_NT.shape == batch(cell).tokens_NT.shape
        assert (np.diff(positions_NT, axis=1) >= 0.25).all()
        assert (positions_NT * 4 == (positions_NT * 4).astype(int)).all()
        places, counts = np.unique(positions_NT, return_counts=True)
        assert (places == np.arange(4 * longest) / 4).all()  # short samples see the positions of long ones
        expected = positions_NT.size / len(places)
        assert np.abs(counts - expected).max() < 6 * expected**0.5


def test_the_mean_positions_of_the_longest_sample_are_those_that_it_is_measured_at():
    positions_NT = positions(with_random_positions(batch("TT.L6"), 7, TASK.max_tokens))
    np.testing.assert_allclose(positions_NT.mean(axis=0), np.arange(TASK.max_tokens), atol=1)


def test_positions_are_a_function_of_stream_and_sample():
    whole = with_random_positions(batch(count=9), 7, 20)
    parts = [with_random_positions(batch(count=9).shard(rank, 2), 7, 20) for rank in range(2)]
    for rank in range(2):
        np.testing.assert_array_equal(whole.shard(rank, 2).positions_NT, parts[rank].positions_NT)
    assert not np.array_equal(positions(whole), positions(with_random_positions(batch(count=9), 8, 20)))
    assert len({row.tobytes() for row in positions(whole)}) == 9


def test_a_step_draws_other_positions_in_each_epoch():
    tuned = CHAIN[1].model_copy(update={"samples": 64, "epochs": 2, "batch_samples": 64})
    one, two = (
        {int(i): p for b in supervised._batches(tuned, step) for i, p in zip(b.index_N, positions(b), strict=True)}
        for step in (0, 1)
    )
    assert one.keys() == two.keys()
    assert not any(np.array_equal(one[i], two[i]) for i in one)


@pytest.mark.parametrize("row_multiple", [1, 8])
def test_a_decoder_is_trained_at_them(row_multiple):
    trainer = Trainer(factory.build(RANDOMISED, VOCABULARY, 3), OPTIMISER, 5)
    trainer.row_multiple = row_multiple
    samples, start_N = with_random_positions(batch(count=5), 7, TASK.max_tokens), np.ones(5, dtype=int)
    loss = rank_loss(trainer, LossMeter(trainer.device), samples, start_N, 1.0)
    tokens_NT = torch.from_numpy(samples.tokens_NT.astype(np.int64))
    rows = len(tokens_NT), tokens_NT.shape[1] - 1
    positions_NT = torch.from_numpy(positions(samples)[:, :-1])
    seen = torch.ones(rows[0], 1, rows[1], rows[1], dtype=torch.bool).tril()
    logits = trainer.model(
        input_ids=tokens_NT[:, :-1], position_ids=positions_NT, attention_mask=seen, use_cache=False
    ).logits
    torch.testing.assert_close(loss, next_token_loss(logits, tokens_NT).sum())
    plain = rank_loss(trainer, LossMeter(trainer.device), batch(count=5), start_N, 1.0)
    assert abs(plain - loss) > 1e-3
    even = replace(samples, positions_NT=np.tile(np.arange(rows[1] + 1, dtype=np.float32), (5, 1)))
    torch.testing.assert_close(rank_loss(trainer, LossMeter(trainer.device), even, start_N, 1.0), plain)


class StopHereError(Exception):
    pass


def test_an_interrupted_run_goes_on_at_the_same_positions(tmp_path, monkeypatch):
    straight, stopped = (RunConfig(store=str(tmp_path / name), checkpoint_every_s=0) for name in ("one", "two"))
    supervised.run_in_process(CHAIN, straight, lambda report: None)

    calls, due = iter(range(100)), supervised.Saving.due

    def due_until_the_fourth(saving):
        if next(calls) == 3:
            raise StopHereError
        return due(saving)

    monkeypatch.setattr(supervised.Saving, "due", due_until_the_fourth)
    with pytest.raises(Exception, match="StopHere"):
        supervised.run_in_process(CHAIN, stopped, lambda report: None)
    monkeypatch.setattr(supervised.Saving, "due", due)
    supervised.run_in_process(CHAIN, stopped, lambda report: None)
    for stage in CHAIN:
        one, two = Store(straight.store), Store(stopped.store)
        assert weights_digest(one, stage) == weights_digest(two, stage)
    plain = [pretrain(task=TASK, decoder=MICRO, samples=640)]
    supervised.run_in_process(plain, straight, lambda report: None)
    assert weights_digest(Store(straight.store), plain[0]) != weights_digest(Store(straight.store), BASE)
