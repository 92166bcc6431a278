"""Decoders from scratch: built from a seed, saved and loaded, with as many weights as predicted."""

import pytest
import torch

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
    models_io.save(model, tmp_path)
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
