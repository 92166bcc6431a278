"""The reference sampler: its results equal those of one prefix at a time, however prompts are batched."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from rayexp.models import factory
from rayexp.models.cache import padded
from rayexp.sampling.base import SEED_STRIDE, prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import tiny_chain
from tests.fixtures.prefixes import OTHERS, PROMPT, next_token_probabilities


def test_recorded_logprobs_are_those_of_teacher_forcing(model):
    sampler = TorchSampler(model)
    prompts = [PROMPT, *OTHERS]
    completions = sampler.generate(prompts, range(len(prompts)), 3, [6] * len(prompts))
    for n, row in enumerate(completions.rows):
        prompt = prompts[n // 3]
        scored = sampler.score([[*prompt, *row]])[0][len(prompt) - 1 :]
        np.testing.assert_allclose(completions.logprobs_NC[n, : len(row)], scored, atol=1e-5)
        one_by_one = [next_token_probabilities(model, [*prompt, *row[:t]])[row[t]] for t in range(len(row))]
        np.testing.assert_allclose(scored, np.log(one_by_one), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_completions_are_drawn_and_scored_at_a_temperature(model, temperature):
    completions = TorchSampler(model).generate([PROMPT], [7], 4096, [2], temperature)
    tempered = next_token_probabilities(model, PROMPT) ** (1 / temperature)
    tempered /= tempered.sum()
    first_N = completions.tokens_NC[:, 0]
    np.testing.assert_allclose(completions.logprobs_NC[:, 0], np.log(tempered[first_N]), atol=1e-5)
    counts, expected = np.bincount(first_N, minlength=64).astype(float), tempered.numpy() * len(first_N)
    common = expected >= (5 if temperature < 1 else 0)  # at a high temperature every token is common
    observed, rest = counts[common], counts[~common].sum()
    assert rest <= 3 * expected[~common].sum()
    assert chisquare(observed, expected[common] * observed.sum() / expected[common].sum()).pvalue > 1e-3


def test_completions_do_not_depend_on_what_they_are_batched_with(model):
    sampler = TorchSampler(model)
    prompts = [*OTHERS, PROMPT, OTHERS[0]]
    seeds = [prompt_seed("a run", i) for i in range(len(prompts))]
    limits = [6, 6, 4, 6, 6, 4]
    together = sampler.generate(prompts, seeds, 4, limits)
    for order in ([5, 2, 0, 1, 4, 3], [3], [1, 4]):
        picked = sampler.generate([prompts[i] for i in order], [seeds[i] for i in order], 4, [limits[i] for i in order])
        assert picked.rows == [together.rows[i * 4 + j] for i in order for j in range(4)]
        for n, i in enumerate(i * 4 + j for i in order for j in range(4)):
            size = picked.length_N[n]
            np.testing.assert_allclose(picked.logprobs_NC[n, :size], together.logprobs_NC[i, :size], atol=1e-5)


def test_members_that_begin_alike_are_decoded_once(model, monkeypatch):
    """Use a nearly deterministic decoder. It decodes as many rows as there are different prefixes, and few more."""
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.lm_head.weight.mul_(10)
    rows_read = []
    forward = sure.forward
    monkeypatch.setattr(sure, "forward", lambda **given: rows_read.append(len(given["input_ids"])) or forward(**given))
    rows = TorchSampler(sure).generate([PROMPT], [0], 256, [6]).rows
    monkeypatch.undo()
    prefixes = [len({tuple(row[:size]) for row in rows if len(row) >= size}) for size in range(1, 6)]
    assert prefixes[0] < 32 < prefixes[-1] < 64
    assert rows_read[0] == 1
    assert [padded(count) for count in prefixes] == rows_read[1:]
    assert rows == TorchSampler(sure).generate([PROMPT] * 256, range(256), 1, [6] * 256).rows


def test_members_of_a_group_and_seeds_differ(model):
    rows = TorchSampler(model).generate([PROMPT, PROMPT], [0, SEED_STRIDE], 8, [6, 6]).rows
    assert len(set(map(tuple, rows))) > 12
    assert rows == TorchSampler(model).generate([PROMPT, PROMPT], [0, SEED_STRIDE], 8, [6, 6]).rows


def test_tokens_are_drawn_from_the_softmax(model):
    """Compare first tokens, and second tokens after the most frequent first one, by chi-square over tokens that are
    expected at least five times."""
    completions = TorchSampler(model).generate([PROMPT], [7], 8192, [2])
    first = completions.tokens_NC[:, 0]
    favourite = int(np.bincount(first).argmax())
    second = completions.tokens_NC[first == favourite, 1]
    for drawn, context in ((first, PROMPT), (second, [*PROMPT, favourite])):
        expected = next_token_probabilities(model, context).numpy() * len(drawn)
        counts = np.bincount(drawn, minlength=64).astype(float)
        common = expected >= 5
        assert common.sum() > 5
        observed = [*counts[common], counts[~common].sum()]
        assert chisquare(observed, [*expected[common], expected[~common].sum()]).pvalue > 1e-3


def test_completions_end_at_eos_or_at_their_limit(model):
    completions = TorchSampler(model).generate([PROMPT, OTHERS[0]], [1, 2], 256, [5, 3])
    lengths = {5: 0, 3: 0}
    for n, row in enumerate(completions.rows):
        limit = 5 if n < 256 else 3
        assert VOCABULARY.eos not in row[:-1]
        assert len(row) == limit or (len(row) < limit and row[-1] == VOCABULARY.eos)
        lengths[limit] += len(row) < limit
    assert all(lengths.values())
    padding = completions.mask_NC == 0
    assert (completions.tokens_NC[padding] == VOCABULARY.pad).all()
    assert not completions.logprobs_NC[padding].any()


def test_sync_replaces_the_weights(model):
    other = factory.build(tiny_chain(StringTask(axis="depth")).pretrain.decoder, VOCABULARY, seed=2)
    sampler = TorchSampler(factory.build(tiny_chain(StringTask(axis="depth")).pretrain.decoder, VOCABULARY, seed=3))
    sampler.sync({name: tensor.numpy() for name, tensor in other.state_dict().items()}, version=4)
    one, two = sampler.generate([PROMPT], [0], 4, [6]), TorchSampler(other).generate([PROMPT], [0], 4, [6])
    assert one.rows == two.rows
    assert one.weight_version == sampler.weight_version == 4
