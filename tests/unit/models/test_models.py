"""Decoders from scratch: built from a seed, saved and loaded, with the predicted number of weights."""

import pytest
import torch
from transformers.models.llama import modeling_llama

from rayexp.models import factory
from rayexp.models import io as models_io
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO
from tests.fixtures.weights import same, weights


@pytest.mark.parametrize("name", ["tiny", "micro"])
def test_a_saved_decoder_comes_back_bitwise(tmp_path, name):
    shape = DECODERS["tiny"] if name == "tiny" else MICRO
    model = factory.build(shape, VOCABULARY, seed=3)
    models_io.save(model, VOCABULARY, tmp_path)
    loaded = models_io.load(tmp_path)
    assert same(weights(loaded), weights(model))
    assert loaded.training
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert loaded.config.max_position_embeddings == shape.context_tokens


def test_equal_seeds_build_equal_decoders_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    one, twin, other = (weights(factory.build(MICRO, VOCABULARY, seed)) for seed in (0, 0, 1))
    assert same(one, twin)
    assert not same(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_number_of_parameters_is_the_predicted_one(name):
    model = factory.build(DECODERS[name], VOCABULARY, seed=0)
    assert sum(p.numel() for p in model.parameters()) == DECODERS[name].parameters(VOCABULARY.size)


# Positions


TOKENS_NT = torch.arange(3, 3 + 4 * 12).view(4, 12) % 60


@torch.no_grad()
def logits(model, tokens_NT=TOKENS_NT, **rest):
    return model(input_ids=tokens_NT, use_cache=False, **rest).logits


def test_the_configuration_of_usual_positions_is_what_it_was():
    """Expect no setting on positions, because stored models have none."""
    assert "positions" not in factory.config(MICRO, VOCABULARY).to_dict()
    assert factory.config(MICRO, VOCABULARY).rope_parameters == {"rope_theta": 10_000.0, "rope_type": "default"}


@pytest.mark.parametrize("name", ["tiny", "micro"])
def test_without_positions_nothing_rotates(name, tmp_path, monkeypatch):
    shape = (DECODERS["tiny"] if name == "tiny" else MICRO).model_copy(update={"positions": "none"})
    models_io.save(factory.build(shape, VOCABULARY, seed=3), VOCABULARY, tmp_path)
    model = models_io.load(tmp_path)
    found, rope = logits(model), logits(factory.build(shape.model_copy(update={"positions": "rope"}), VOCABULARY, 3))
    elsewhere = torch.randperm(50)[:12].expand(4, 12)
    seen = torch.ones(4, 1, 12, 12, dtype=torch.bool).tril()
    torch.testing.assert_close(logits(model, position_ids=elsewhere, attention_mask=seen), found, atol=1e-5, rtol=0)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_: (q, k))
    torch.testing.assert_close(logits(model), found, atol=1e-5, rtol=0)
    assert (rope - found).abs().max() > 0.1


def test_randomised_positions_are_a_matter_of_training_alone():
    shape = MICRO.model_copy(update={"positions": "randomised"})
    assert factory.config(shape, VOCABULARY).to_dict() == factory.config(MICRO, VOCABULARY).to_dict()


@pytest.mark.parametrize(("name", "billions"), [("1b", 1.0), ("3b", 2.8), ("7b", 6.5)])
def test_large_presets_have_about_the_parameters_of_their_name(name, billions):
    assert DECODERS[name].parameters(VOCABULARY.size) / 1e9 == pytest.approx(billions, rel=0.03)
