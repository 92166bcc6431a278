"""Weights that are sent to a sampler in parts."""

import pytest

from rayexp.distributed.weight_sync import chunks
from rayexp.models import factory
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.weights import same, weights


def decoder(seed):
    return factory.build(DECODERS["tiny"], VOCABULARY, seed)


@pytest.mark.parametrize("limit", [1, 400_000, 2**40])
def test_parts_are_as_large_as_allowed_and_never_divide_a_block(limit):
    sizes = {name: tensor.nbytes for name, tensor in weights(decoder(0)).items()}
    found = chunks(sizes, limit)
    assert [name for part in found for name in part] == list(sizes)
    blocks = [{name.split(".")[2] for name in part if ".layers." in name} for part in found]
    layers = DECODERS["tiny"].layers
    assert sum(map(len, blocks)) == layers
    block = sum(size for name, size in sizes.items() if ".layers.0." in name)
    assert all(sum(sizes[name] for name in part) <= max(limit, block) for part in found)
    assert len(found) == {1: layers + 3, 400_000: len(found), 2**40: 1}[limit]
    assert len(found) > 1 or limit == 2**40


def test_a_sampler_that_is_given_all_parts_has_all_weights():
    ours, theirs = decoder(0), weights(decoder(1))
    sampler = TorchSampler(ours)
    for part in chunks({name: tensor.nbytes for name, tensor in theirs.items()}, 1):
        sampler.sync({name: theirs[name].numpy() for name in part}, version=1)
    assert same(weights(ours), theirs)


def test_weights_that_a_decoder_does_not_have_are_refused():
    with pytest.raises(KeyError, match=r"the decoder has no weights model\.layers\.99\.x"):
        TorchSampler(decoder(0)).sync({"model.layers.99.x": weights(decoder(0))["lm_head.weight"].numpy()}, version=1)
