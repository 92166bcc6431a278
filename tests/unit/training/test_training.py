"""Training steps to the digit: golden losses, bitwise continuation, and the refusal of a bad gradient."""

import itertools
import math
import re
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from rayexp.errors import NotFiniteError, PermanentError
from rayexp.models import factory
from rayexp.stages import AdamW
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.training import checkpoint
from rayexp.training.loss import next_token_loss
from rayexp.training.trainer import Trainer, learning_rate
from tests.fixtures.factories import MICRO, OPTIMISER
from tests.fixtures.weights import same, weights

STEPS = 20
TASK = StringTask(axis="composition")

#: Golden numbers. A change that should not alter results leaves them alone.
# fmt: off
GOLDEN_LOSSES = [
    4.589215, 3.880874, 3.355594, 3.275117, 3.077286,
    2.894290, 2.843309, 2.747949, 2.711740, 2.654918,
    2.634811, 2.605818, 2.592476, 2.590445, 2.538178,
    2.541566, 2.511393, 2.478355, 2.481248, 2.462718,
]
# fmt: on


def losses_of_step(trainer, step, record):
    """Return the losses of one step of pretraining on 32 samples as functions, one for each batch of equal lengths.
    Their sum is the mean over tokens. record: gets their values."""
    token_batches = TASK.mixture("pretrain", 0, 0.1, step * 32, 32)
    counted = sum(r.tokens_NT[:, 1:].size for r in token_batches)

    def loss(token_batch):
        tokens_NT = torch.from_numpy(token_batch.tokens_NT.astype(np.int64))
        logits_NTV = trainer.model(input_ids=tokens_NT[:, :-1], use_cache=False).logits
        value = next_token_loss(logits_NTV, tokens_NT).sum() / counted
        record.append(value.item())
        return value

    return [lambda r=r: loss(r) for r in token_batches]


def train(trainer, stop):
    """Train up to ``stop``. Return the loss of every step."""
    losses = []
    while trainer.completed_steps < stop:
        parts: list[float] = []
        trainer.step(losses_of_step(trainer, trainer.completed_steps, parts))
        losses.append(sum(parts))
    return losses


def micro_trainer(seed=0, optimiser=OPTIMISER):
    return Trainer(factory.build(MICRO, VOCABULARY, seed), optimiser, STEPS)


def test_golden_losses_of_the_tiny_decoder():
    trainer = Trainer(factory.build(DECODERS["tiny"], VOCABULARY, seed=0), OPTIMISER, STEPS)
    assert train(trainer, STEPS) == pytest.approx(GOLDEN_LOSSES, abs=1e-5)


def test_a_run_that_was_stopped_continues_bitwise(tmp_path):
    """Continue through files that hold only tensors, in a trainer that started from other weights."""
    straight, stopped, continued = micro_trainer(), micro_trainer(), micro_trainer(seed=9)
    losses = train(straight, 8)
    first = train(stopped, 3)
    checkpoint.save(stopped.state(), tmp_path)
    expected_draw = torch.rand(3)
    state = continued.state()
    checkpoint.load(state, tmp_path)
    continued.restore(state)
    assert torch.equal(torch.rand(3), expected_draw)
    assert continued.completed_steps == 3
    assert first + train(continued, 8) == losses
    assert same(weights(continued.module), weights(straight.module))


def test_a_process_of_a_group_saves_what_is_its_own_without_the_others(tmp_path):
    """Save like a learner that shares a process group with its samplers. A collective call would never return."""
    torch.distributed.init_process_group("fake", init_method=f"file://{tmp_path}/group", rank=0, world_size=2)
    try:
        checkpoint.save(micro_trainer().state(), tmp_path / "trainer")
    finally:
        torch.distributed.destroy_process_group()
    assert len(list((tmp_path / "trainer").iterdir())) == 1


def test_what_an_earlier_version_left_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(PermanentError, match="an earlier version of rayexp wrote it; --force STAGE makes it again"):
        checkpoint.load(micro_trainer().state(), tmp_path / "trainer")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_is_named_and_changes_nothing(bad, where):
    disturbed, quiet = micro_trainer(), micro_trainer()
    train(disturbed, 2)
    before = weights(disturbed.module)
    good = losses_of_step(disturbed, 2, [])
    name, parameter = next(iter(disturbed.module.named_parameters()))
    if where == "loss":
        expected, last = f"the loss is {bad}", lambda: sum(p.sum() for p in disturbed.module.parameters()) * bad
    else:
        expected, last = f"the gradient of {name} is not finite", lambda: finite_with_gradient(parameter, bad)
    with pytest.raises(NotFiniteError, match=re.escape(expected)):
        disturbed.step([*good, last])
    assert same(weights(disturbed.module), before)
    assert disturbed.completed_steps == 2
    train(disturbed, 4)
    train(quiet, 4)
    assert same(weights(disturbed.module), weights(quiet.module))


def total(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    return sum(losses, torch.zeros(()))


def finite_with_gradient(parameter, gradient):
    """Return a loss of 0 with a given gradient."""
    value = (parameter * 0).sum()
    value.register_hook(lambda _: torch.tensor(gradient))
    return value


def test_a_step_adds_its_losses_up_and_returns_the_norm_before_clipping():
    one, other = micro_trainer(), micro_trainer()
    parts = losses_of_step(one, 0, [])
    assert len(parts) > 1
    norm = one.step(parts)
    torch.testing.assert_close(other.step([lambda: total(part() for part in losses_of_step(other, 0, []))]), norm)
    for a, b in zip(weights(one.module).values(), weights(other.module).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    clipped = Trainer(factory.build(MICRO, VOCABULARY, 0), OPTIMISER.model_copy(update={"clip_norm": 1e-3}), STEPS)
    torch.testing.assert_close(clipped.step(losses_of_step(clipped, 0, [])), norm)
    assert norm > 1e-3


def test_weight_decay_shrinks_matrices_only():
    trainer = micro_trainer(optimiser=AdamW(learning_rate=0.1, weight_decay=0.5, schedule="constant"))
    before = weights(trainer.module)
    trainer.step([lambda: total(p.sum() for p in trainer.module.parameters()) * 0.0])
    for name, now in weights(trainer.module).items():
        torch.testing.assert_close(now, before[name] * (0.95 if now.ndim > 1 else 1.0))


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    cosine = AdamW(learning_rate=0.4, warmup_steps=4)
    rates = [learning_rate(cosine, step, 104) for step in range(106)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[54] == pytest.approx(0.22)
    assert rates[104] == rates[105] == pytest.approx(0.04)
    assert all(a > b for a, b in itertools.pairwise(rates[4:105]))


def test_constant_learning_rate():
    constant = AdamW(learning_rate=0.4, warmup_steps=2, schedule="constant")
    assert [learning_rate(constant, step, 5) for step in range(5)] == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4])
    assert learning_rate(AdamW(learning_rate=0.4), 0, 10) == 0.4


def test_the_trainer_follows_the_schedule():
    """Use Adam with fresh moments, whose first step is as long as the rate."""
    trainer = micro_trainer(optimiser=AdamW(learning_rate=0.4, warmup_steps=4))
    before = weights(trainer.module)["model.norm.weight"]
    trainer.step([lambda: total(p.sum() for p in trainer.module.parameters())])
    torch.testing.assert_close(weights(trainer.module)["model.norm.weight"], before - 0.1)
