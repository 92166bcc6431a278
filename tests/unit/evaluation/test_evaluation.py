"""What a decoder can do (exact mass, samples, intervals), and what theory says it could."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import binom, chisquare

from rayexp.evaluation import theory
from rayexp.evaluation.mass import gold_scores
from rayexp.evaluation.measure import SCHEMA, measure
from rayexp.evaluation.metrics import cluster_bootstrap, pass_at_k, pass_at_k_sampled, wilson
from rayexp.models import factory
from rayexp.sampling.base import SEED_STRIDE, Completions, prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.tasks import TokenBatch
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import tiny_chain

PROMPT = VOCABULARY.encode("<bos> a0 a1 a2 a3 : T =")
OTHERS = [
    VOCABULARY.encode(f"<bos> {letters} : {order} =")
    for letters in ("a5 a5 a5 a5", "b1 a2 b3 a4")
    for order in ("T", "S S")
]


def rectangle_of(prompts, completions):
    tokens_NT = np.array([[*p, *c] for p, c in zip(prompts, completions, strict=True)], dtype=np.uint8)
    size = len(tokens_NT)
    return TokenBatch(tokens_NT, len(prompts[0]), np.arange(size), np.zeros(size, dtype=bool))


@torch.no_grad()
def next_token_probabilities(model, tokens):
    """One prefix at a time, in float64."""
    return (
        model(input_ids=torch.tensor([list(map(int, tokens))]), use_cache=False).logits[0, -1].double().softmax(dim=0)
    )


# Exact mass


def test_gold_mass_is_the_product_of_conditionals(model):
    token_batch = StringTask(axis="composition").of_cell("test", 0, "TS", 0, 5)
    expected = [
        sum(
            math.log(next_token_probabilities(model, row[:t])[row[t]])
            for t in range(token_batch.prompt_tokens, len(row))
        )
        for row in token_batch.tokens_NT
    ]
    for chunk in (2, 1024):
        np.testing.assert_allclose(gold_scores(model, token_batch, chunk).log_mass_N, expected, rtol=1e-5)


def test_masses_of_all_completions_add_up_to_one(model):
    """``<eos>`` at once, or any two tokens of which the first is not ``<eos>``."""
    pairs = [pair for pair in itertools.product(range(64), repeat=2) if pair[0] != VOCABULARY.eos]
    parts = [rectangle_of([PROMPT] * len(part), part) for part in ([(VOCABULARY.eos,)], pairs)]
    assert sum(np.exp(gold_scores(model, part).log_mass_N).sum() for part in parts) == pytest.approx(1, abs=1e-5)


def test_greedy_flag_is_whether_greedy_decoding_writes_the_gold_completion(model):
    prompts = [p for p in [PROMPT, *OTHERS] if len(p) == len(PROMPT)]
    written = TorchSampler(model).greedy(prompts, [5] * len(prompts)).rows
    prompts, written = zip(*[(p, row) for p, row in zip(prompts, written, strict=True) if len(row) == 5], strict=True)
    assert gold_scores(model, rectangle_of(prompts, written)).greedy_N.all()
    for place in range(5):
        changed = [[(token + (i == place)) % 64 for i, token in enumerate(row)] for row in written]
        assert not gold_scores(model, rectangle_of(prompts, changed)).greedy_N.any()


@pytest.mark.parametrize(("completion_format", "sampled"), [("answer", 0), ("trace", 2)])
def test_measurement_has_a_row_for_every_prompt_of_every_cell(completion_format, sampled):
    task = StringTask(axis="composition", completion_format=completion_format)
    spec = tiny_chain(task).evaluate.model_copy(update={"prompts_per_cell": 3, "sampled_completions": 2})
    model = factory.build(spec.root.decoder, VOCABULARY, seed=0)
    table = measure(model, spec)
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert [(r["role"], r["cell"], r["prompt_index"]) for r in rows] == [
        (role, cell, i) for role, cell in task.roles() for i in range(3)
    ]
    assert {r["sampled"] for r in rows} == {sampled}
    assert measure(model, spec) == table


def test_the_completion_is_what_greedy_decoding_writes():
    """For right and wrong prompts alike; a decoder that was trained for a moment gets some of each."""
    task = StringTask(axis="composition")
    spec = tiny_chain(task).evaluate.model_copy(update={"prompts_per_cell": 8})
    model = factory.build(spec.root.decoder, VOCABULARY, seed=0)
    token_batch = task.of_cell("test", 0, "T", 0, 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        tokens_NT = torch.from_numpy(token_batch.tokens_NT.astype(np.int64))
        model(input_ids=tokens_NT, labels=tokens_NT).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    rows = measure(model, spec).to_pylist()
    for row in rows:
        limit = len(VOCABULARY.encode(row["gold"]))
        alone = TorchSampler(model).greedy([VOCABULARY.encode(row["prompt"])], [limit]).rows[0]
        assert row["completion"] == VOCABULARY.decode(alone)
        assert row["greedy_correct"] == (row["completion"] == row["gold"])
    assert {row["greedy_correct"] for row in rows} == {True, False}


# The reference sampler


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
    """A decoder that is all but sure of itself: as many rows as different beginnings, up to a multiple of 32."""
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
    assert [-(-count // 32) * 32 for count in prefixes] == rows_read[1:]
    assert rows == TorchSampler(sure).generate([PROMPT] * 256, range(256), 1, [6] * 256).rows


def test_members_of_a_group_and_seeds_differ(model):
    rows = TorchSampler(model).generate([PROMPT, PROMPT], [0, SEED_STRIDE], 8, [6, 6]).rows
    assert len(set(map(tuple, rows))) > 12
    assert rows == TorchSampler(model).generate([PROMPT, PROMPT], [0, SEED_STRIDE], 8, [6, 6]).rows


def test_tokens_are_drawn_from_the_softmax(model):
    """First tokens, and second tokens after the most frequent first one: chi-square over tokens expected five times."""
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


def test_prompt_seeds_are_far_apart():
    seeds = [prompt_seed(run, step, place) for run in range(5) for step in range(20) for place in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 and seed % SEED_STRIDE == 0 for seed in seeds)


def test_completions_from_rows_and_back():
    rows = [[3, 4, 2], [2]]
    completions = Completions.from_rows(rows, [[-1.0, -2.0, -3.0], [-4.0]], weight_version=1)
    assert completions.rows == rows
    assert completions.mask_NC.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_completions_of_several_samplers_are_those_of_one():
    rows, logprobs = [[4], [5, 2], [3, 4, 2], [2]], [[-0.5], [-1.5, -2.0], [-1.0, -2.0, -3.0], [-4.0]]
    parts = [Completions.from_rows(rows[part], logprobs[part], 7) for part in (slice(1), slice(1, 3), slice(3, 4))]
    joined, whole = Completions.concatenate(parts), Completions.from_rows(rows, logprobs, 7)
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(getattr(joined, name), array, strict=name != "weight_version")
    assert joined.tokens_NC.flags.writeable


# Metrics


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_sampled_pass_at_k_is_unbiased(sampled, k, q):
    """Expectation over the binomial number of correct completions is the exact value."""
    assume(k <= sampled)
    correct = np.arange(sampled + 1)
    estimate = (binom.pmf(correct, sampled, q) * pass_at_k_sampled(sampled, correct, k)).sum()
    assert estimate == pytest.approx(float(pass_at_k(np.array(q), k)), abs=1e-9)
    assert float(pass_at_k(np.array(q), k)) == pytest.approx(1 - (1 - q) ** k, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_sampled_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        pass_at_k_sampled(4, np.array([1]), k)


@given(st.integers(1, 200), st.data())
def test_wilson_interval(trials, data):
    successes = data.draw(st.integers(0, trials))
    z, p = 1.959964, successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert interval.mean == p
    assert interval.prompts == trials


def test_bootstrap_intervals_cover_the_truth_and_see_seeds():
    """200 studies of 10 seeds with 20 prompts; most of the variance is between seeds, which pooled prompts hide."""
    rng = np.random.default_rng(3)
    covered = blind = 0
    for _ in range(200):
        rates = rng.beta(2, 2, size=10)
        clusters = [rng.binomial(1, rate, size=20) for rate in rates]
        interval, pooled = cluster_bootstrap(clusters, 300), cluster_bootstrap([np.concatenate(clusters)], 300)
        covered += interval.low <= 0.5 <= interval.high
        blind += pooled.low <= 0.5 <= pooled.high
    assert 180 <= covered <= 200
    assert blind < 160


def test_bootstrap_is_deterministic_and_exact_where_nothing_varies():
    clusters = [np.array([0.0, 1.0, 1.0]), np.array([1.0])]
    interval = cluster_bootstrap(clusters)
    assert interval == cluster_bootstrap(clusters)
    assert (interval.mean, interval.seeds, interval.prompts) == (0.75, 2, 4)
    constant = cluster_bootstrap([np.full(5, 0.25)] * 3)
    assert (constant.low, constant.mean, constant.high) == (0.25, 0.25, 0.25)
    for bad in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one cluster"):
            cluster_bootstrap(bad)


# Theory

masses = st.floats(1e-12, 1 - 1e-9)
betas = st.floats(0.02, 10)


@given(masses, betas)
def test_the_optimum_shifts_the_logit_by_one_over_beta(q, beta):
    s, tilted = math.exp(1 / beta), float(theory.tilted(np.array(q), beta))
    assert tilted == pytest.approx(s * q / (s * q + 1 - q), rel=1e-9)
    if tilted < 0.999:  # where 1 - P* keeps its digits
        shift = math.log(tilted / (1 - tilted)) - math.log(q / (1 - q))
        assert shift == pytest.approx(1 / beta, abs=1e-6)


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0])
def test_the_tilted_policy_is_the_maximiser(beta):
    """Of E[R] - beta KL(pi||q) over the correct mass p, on a grid."""
    p, q = np.linspace(1e-4, 1 - 1e-4, 20_000), 0.03
    best = p[np.argmax(p - beta * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)))]
    assert float(theory.tilted(np.array(q), beta)) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("beta", [0.1, 0.2, 1.0, 5.0])
def test_the_gain_peaks_where_and_as_high_as_it_says(beta):
    q = theory.peak(beta)[0] * np.linspace(0.5, 1.5, 2001)
    gains = theory.gain(q, beta)
    assert (q[gains.argmax()], gains.max()) == pytest.approx(theory.peak(beta), rel=1e-3)


@given(st.floats(0, 1), st.sampled_from([0.0, 0.001]) | betas)
def test_the_papers_bound_is_above_the_optimum(q, beta):
    q_N = np.array([q])
    assert theory.paper_bound(q_N, beta)[0] >= theory.tilted(q_N, beta)[0] - 1e-12
    assert theory.tilted(q_N, beta)[0] >= q - 1e-12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("beta", [0.0, 0.001, 1.0])
def test_extreme_masses_are_finite_and_silent(beta):
    q = np.array([0.0, 1e-300, 0.5, 1.0])
    tilted, bound, gain = theory.tilted(q, beta), theory.paper_bound(q, beta), theory.gain(q, beta)
    for values in (tilted, bound, gain):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert (values <= 1).all()
    assert (tilted[0], tilted[-1], gain[0], gain[-1]) == (0, 1, 0, 0)


@pytest.mark.filterwarnings("error")
def test_chances_at_extreme_masses_are_finite_and_silent():
    np.testing.assert_allclose(pass_at_k(np.array([0.0, 1e-12, 0.5, 1.0]), 8), [0, 8e-12, 1 - 0.5**8, 1], rtol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.001])
def test_the_peak_without_a_kl_is_at_zero(beta):
    assert theory.peak(beta) == pytest.approx((0, 1), abs=1e-12)
