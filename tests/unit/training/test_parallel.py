"""A decoder sharded over two ranks: the numbers and files of one rank, also if it is killed and continued by either."""

import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayexp.config import RunConfig
from rayexp.errors import NotFiniteError
from rayexp.execution import pretrain as pretrain_stage
from rayexp.execution import supervised
from rayexp.models import factory
from rayexp.stages import Extend
from rayexp.store.artifacts import Store
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.training import checkpoint
from rayexp.training.context import Alone
from rayexp.training.parallel import even_pieces, spread
from rayexp.training.trainer import WEIGHTS, Trainer
from tests.fixtures.artifacts import files_of, losses, weights_digest
from tests.fixtures.factories import MICRO, OPTIMISER, evaluate, pretrain, sft
from tests.fixtures.ranks import run_ranks
from tests.fixtures.weights import same, weights

#: Tolerance. Two ranks that each hold the whole model differ by 1.2e-5 after eight steps as well.
ROUNDING = 2e-5
DIES_AT = 5
HALF = pretrain(optimiser=OPTIMISER.model_copy(update={"precision": "bf16"}))


def chain():
    """Return a pretraining, one that continues it, SFT from that, and its measurement."""
    base = pretrain(stop_after=6)
    tuned = sft(Extend(init=base))
    return [base, tuned.init, tuned, evaluate(tuned)]


def run_config(folder, **changes):
    return RunConfig(store=str(folder), **changes)


#: Micro-batches so small that one rank has fewer pieces than the other.
SPREAD = {"train_workers": 2, "sharding": "auto", "micro_batch_tokens": 300, "checkpoint_every_s": 0.0}


def on_two_ranks(folder, context):
    """Train the chain. Train its first stage again in another store, where the machine dies and continues, and keep the
    checkpoint that it left. The machine has too little memory for the whole model on each rank."""
    supervised.devices.memory = lambda device: 1e9
    supervised._run(chain(), run_config(folder / "two", **SPREAD), context)
    batch = pretrain_stage.batch

    def dies(stage, step):
        if step == DIES_AT:
            raise RuntimeError("the machine is gone")
        return batch(stage, step)

    pretrain_stage.batch = dies
    with pytest.raises(RuntimeError, match="the machine is gone"):
        supervised._run(chain()[:1], run_config(folder / "killed", **SPREAD), context)
    pretrain_stage.batch = batch
    context.barrier()
    if context.rank == 0:
        shutil.copytree(folder / "killed", folder / "left")
    context.barrier()
    supervised._run(chain()[:1], run_config(folder / "killed", **SPREAD), context)
    supervised._run([HALF], run_config(folder / "two", gradient_checkpointing=True, **SPREAD), context)
    _learn_from_nothing(context)
    files = sum(len(list(path.glob("step-*/trainer/*"))) for path in (folder / "left" / "work").iterdir())
    assert files == 2 * 2, "two checkpoints, with a file of each rank"


def _learn_from_nothing(context):
    """Check that a loss that is not finite on one rank ends the step on all ranks, and leaves no rank waiting."""
    model = factory.build(MICRO, VOCABULARY, 0) if context.rank == 0 else None
    trainer = Trainer(spread(model, torch.device("cpu"), "fp32", context), OPTIMISER, 1)
    factor = math.nan if context.rank == 1 else 1.0
    ids = torch.ones((1, 4), dtype=torch.int64)
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        trainer.step([lambda: trainer.model(input_ids=ids, use_cache=False).logits.sum() * factor])
    assert trainer.completed_steps == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with the stores of one rank and of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    supervised.run_in_process([*chain(), HALF], run_config(folder / "one"), lambda report: None)
    run_ranks(partial(on_two_ranks, folder), folder)
    return folder


def loaded(store, stage):
    with store.model(stage.id) as folder:
        return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def require_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=ROUNDING)


def test_two_ranks_take_the_steps_of_one(folder):
    one, two = Store(str(folder / "one")), Store(str(folder / "two"))
    for stage in chain()[:3]:
        expected, found = losses(one, stage), losses(two, stage)
        assert found.keys() == expected.keys()
        assert all(abs(found[step] - expected[step]) < 1e-5 for step in expected)
        require_close(loaded(two, stage), loaded(one, stage))


def test_in_half_precision_and_with_gradient_checkpointing_the_losses_are_those_of_one_rank(folder):
    """Allow the rounding of bf16. In a sharded model the weights that are added to activations are bf16 as well."""
    expected, found = (losses(Store(str(folder / name)), HALF) for name in ("one", "two"))
    assert found == pytest.approx(expected, rel=2**-8)


def test_an_artifact_has_the_files_that_one_rank_writes(folder):
    """Leave out the state from which a pretraining is continued, because each rank writes its part of it."""
    one, two = Store(str(folder / "one")), Store(str(folder / "two"))
    names = [{str(path) for path in files_of(store) if "shard" not in path.name} for store in (one, two)]
    assert names[0] == names[1]
    assert all(path.parts[0] == "stages" for path in files_of(two)), "something besides finished artifacts stays behind"
    for stage in chain()[:3]:
        with one.model(stage.id) as model, two.model(stage.id) as spread:
            for file in model.glob("*.json"):
                assert (spread / file.name).read_text() == file.read_text(), file.name


def test_two_ranks_that_were_killed_go_on_bitwise(folder):
    base, *_ = chain()
    assert weights_digest(Store(str(folder / "killed")), base) == weights_digest(Store(str(folder / "two")), base)


def test_one_rank_goes_on_where_two_were_killed(folder, monkeypatch):
    base, *_ = chain()
    batch, seen = pretrain_stage.batch, []
    monkeypatch.setattr(pretrain_stage, "batch", lambda stage, step: seen.append(step) or batch(stage, step))
    supervised.run_in_process([base], run_config(folder / "left"), lambda report: None)
    assert min(seen) == DIES_AT - 1  # a batch is made during the step before, which is lost too
    require_close(loaded(Store(str(folder / "left")), base), loaded(Store(str(folder / "one")), base))


def test_all_ranks_have_as_many_pieces():
    def rank_of_three(number):
        rank = Alone()
        rank.rank, rank.ranks = number, 3
        return rank

    batch = pretrain().task.of_cell("pretrain", 0, "TT", 0, 4)
    pieces = [even_pieces(batch, batch.tokens_NT.shape[1], rank_of_three(number)) for number in range(3)]
    assert [len(own) for own in pieces] == [2, 2, 2]
    assert [[len(piece.tokens_NT) for piece in own] for own in pieces] == [[1, 1], [1, 0], [1, 0]]
    assert sorted(int(i) for own in pieces for piece in own for i in piece.index_N) == [0, 1, 2, 3]


@pytest.mark.parametrize(("size", "files"), [("5GB", 1), ("20KB", 4)])
def test_a_model_that_is_exported_in_files_of_a_size_loads_in_stock_transformers(tmp_path, size, files):
    model = factory.build(MICRO, VOCABULARY, 0)
    trainer = Trainer(model, OPTIMISER, 1)
    checkpoint.save(trainer.state(), tmp_path / "saved")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.config.save_pretrained(tmp_path / "model")
    checkpoint.export(shapes, tmp_path / "saved", WEIGHTS, tmp_path / "model", size)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == files
    assert same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), weights(model))
