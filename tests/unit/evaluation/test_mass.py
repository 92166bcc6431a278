"""The exact mass of gold completions, against one prefix at a time and against all completions."""

import itertools
import math

import numpy as np
import pytest

from rayexp.evaluation import mass
from rayexp.evaluation.mass import gold_scores
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.tasks import TokenBatch
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.prefixes import OTHERS, PROMPT, next_token_probabilities


def token_batch_of(prompts, completions):
    return TokenBatch.of(list(zip(prompts, completions, strict=True)), np.arange(len(prompts)))


@pytest.mark.parametrize("held", [1, 2 * 5 * 64, mass.HELD])
def test_gold_mass_is_the_product_of_conditionals(model, held, monkeypatch):
    """Vary the number of distributions that may be held at once."""
    monkeypatch.setattr(mass, "HELD", held)
    token_batch = StringTask(axis="composition").of_cell("test", 0, "TS", 0, 5)
    expected = [
        [math.log(next_token_probabilities(model, row[:t])[row[t]]) for t in range(first, len(row))]
        for row, first in zip(token_batch.tokens_NT, token_batch.prompt_tokens_N, strict=True)
    ]
    np.testing.assert_allclose(gold_scores(model, token_batch).token_log_mass, expected, rtol=1e-5)


def test_only_completions_count_as_held(model, monkeypatch):
    """Have memory for the distributions of two completions: 5 tokens each, over a vocabulary of 64."""
    calls = []
    scored = mass.completion_logprobs
    monkeypatch.setattr(mass, "HELD", 2 * 5 * 64)
    monkeypatch.setattr(mass, "completion_logprobs", lambda *given: calls.append(len(given[1])) or scored(*given))
    gold_scores(model, token_batch_of([PROMPT] * 4, [(1, 2, 3, 4, 5)] * 4))
    assert calls == [2, 2]


def test_masses_of_all_completions_add_up_to_one(model):
    """Sum over ``<eos>`` alone, and over any two tokens of which the first is not ``<eos>``."""
    pairs = [pair for pair in itertools.product(range(64), repeat=2) if pair[0] != VOCABULARY.eos]
    parts = [token_batch_of([PROMPT] * len(part), part) for part in ([(VOCABULARY.eos,)], pairs)]
    assert sum(np.exp(gold_scores(model, part).log_mass_N).sum() for part in parts) == pytest.approx(1, abs=1e-5)


def test_greedy_flag_is_whether_greedy_decoding_writes_the_gold_completion(model):
    prompts = [p for p in [PROMPT, *OTHERS] if len(p) == len(PROMPT)]
    written = TorchSampler(model).greedy(prompts, [5] * len(prompts)).rows
    prompts, written = zip(*[(p, row) for p, row in zip(prompts, written, strict=True) if len(row) == 5], strict=True)
    assert gold_scores(model, token_batch_of(prompts, written)).greedy_N.all()
    for place in range(5):
        changed = [[(token + (i == place)) % 64 for i, token in enumerate(row)] for row in written]
        assert not gold_scores(model, token_batch_of(prompts, changed)).greedy_N.any()
