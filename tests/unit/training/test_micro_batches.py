"""A step whose gradient is computed in pieces, or with recomputed activations, which equals the step as a whole."""

import pytest
import torch

from rayexp.config import RunConfig
from rayexp.execution import supervised
from rayexp.models import io
from rayexp.store.artifacts import Store
from tests.fixtures.artifacts import losses
from tests.fixtures.factories import pretrain, sft


@pytest.mark.parametrize("tokens", [1, 100, 10**9])
def test_pieces_are_a_partition_of_the_rows(tokens):
    stage = pretrain()
    for batch in supervised._batches(stage, 0):
        pieces = batch.pieces(tokens)
        assert [i for piece in pieces for i in piece.index_N] == batch.index_N.tolist()
        assert all(len(piece.index_N) == 1 or piece.tokens_NT.size <= tokens for piece in pieces)
    assert batch.take(slice(0)).pieces(tokens)[0].tokens == 0


@pytest.mark.parametrize("how", [{"micro_batch_tokens": 200}, {"gradient_checkpointing": True}], ids=str)
def test_training_that_saves_memory_ends_where_training_at_once_does(how, tmp_path):
    base = pretrain(samples=512)
    tuned, folders = sft(base), {}
    for name, settings in (("whole", {}), ("pieces", how)):
        run_config = RunConfig.model_validate({"store": str(tmp_path / name), **settings})
        supervised.run_in_process([base, tuned], run_config, lambda report: None)
        folders[name] = Store(run_config.store)
    for stage in (base, tuned):
        curves = [losses(store, stage) for store in folders.values()]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4)
        with folders["whole"].model(stage.id) as one, folders["pieces"].model(stage.id) as other:
            pairs = zip(io.load(one).parameters(), io.load(other).parameters(), strict=True)
            for whole, pieces in pairs:
                torch.testing.assert_close(whole, pieces, rtol=1e-2, atol=1e-3)
