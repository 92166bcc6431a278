"""Scores of a few prefixes at a time, against those of all distributions at once, gradients included."""

import pytest
import torch

from rayexp.models import factory
from rayexp.models.config import Decoder
from rayexp.rl import readout
from rayexp.rl.learner import GRPOLearner
from rayexp.rl.readout import Readout, token_scores
from rayexp.rl.rollouts import rollout_batches
from rayexp.rl.scoring import UniquePrefixes
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.rollouts import grpo_spec, rollouts

DECODER = Decoder(layers=2, width=64, ff_width=128, heads=2, kv_heads=2)
ESTIMATORS = ("exact", "k1", "k2", "k3")


def groups(completion_tokens=5, symbols=10):
    """Return completions of three prompts, of unequal length. Many begin alike."""
    generator = torch.Generator().manual_seed(0)
    prompts_PT = torch.randint(8, 60, (3, 7), generator=generator)
    tokens_NC = torch.randint(8, symbols, (60, completion_tokens), generator=generator)
    length_N = torch.randint(1, completion_tokens + 1, (60,), generator=generator)
    mask_NC = (torch.arange(completion_tokens) < length_N[:, None]).float()
    return UniquePrefixes.of(prompts_PT.numpy(), tokens_NC.numpy()), tokens_NC, mask_NC


def scored(model, frozen, whole, estimator, **sizes):
    """Return scores, and the gradients of a weighted sum of them."""
    prefixes, tokens_NC, mask_NC = groups(**sizes)
    with torch.no_grad():
        reference = Readout.of(frozen, prefixes, whole)
    scores = token_scores(Readout.of(model, prefixes, whole), reference, prefixes, tokens_NC, mask_NC, estimator)
    weights_NC = torch.linspace(-1, 1, tokens_NC.numel()).view(tokens_NC.shape) * mask_NC
    assert scores.kl_NC is not None
    ((scores.logprob_NC + 0.3 * scores.kl_NC) * weights_NC).sum().backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    values = (scores.logprob_NC, scores.entropy_NC, scores.kl_NC)
    return [*(value.detach() for value in values), *gradients]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [{}, {"completion_tokens": 1}, {"symbols": 60}])
@pytest.mark.parametrize("held", [1, 1_000, 3_000])
def test_parts_make_the_whole(estimator, sizes, held, monkeypatch):
    monkeypatch.setattr(readout, "HELD", held)
    model, frozen = (factory.build(DECODER, VOCABULARY, seed=seed) for seed in (1, 2))
    whole = scored(model, frozen, True, estimator, **sizes)
    for part, all_at_once in zip(scored(model, frozen, False, estimator, **sizes), whole, strict=True):
        # A sum of some hundred terms that cancel is exact relative to its largest term, and not to itself.
        assert (part - all_at_once).abs().max() <= 1e-5 * max(1.0, all_at_once.abs().max())


def test_a_part_holds_no_more_than_it_may(monkeypatch):
    model = factory.build(DECODER, VOCABULARY, seed=1)
    prefixes, tokens_NC, mask_NC = groups()
    seen = []
    score = readout.score_tokens

    def counted(policy_NCV, *rest):
        seen.append(len(policy_NCV))
        return score(policy_NCV, *rest)

    monkeypatch.setattr(readout, "score_tokens", counted)
    monkeypatch.setattr(readout, "HELD", 4 * 5 * 64)
    policy = Readout.of(model, prefixes, whole=False)
    assert policy.states_UCX.shape[-1] == DECODER.width
    token_scores(policy, None, prefixes, tokens_NC, mask_NC, "exact")
    assert policy.at_once == 4
    assert len(seen) == -(-len(prefixes.tokens_UC) // 4)
    assert sum(seen) == len(tokens_NC)


@pytest.mark.parametrize("changes", [{}, {"kl_beta": 0.0}, {"updates": 2}])
def test_a_learner_that_reads_in_parts_takes_the_same_step(changes, monkeypatch):
    learners = [GRPOLearner(grpo_spec(**changes), factory.build(DECODER, VOCABULARY, seed=1)) for _ in range(2)]
    batches = rollout_batches(*rollouts(learners[0].model))
    first = learners[0].update(batches, 0.02)
    monkeypatch.setattr(readout, "HELD", 1_000)
    second = learners[1].update(batches, 0.02)
    assert second == pytest.approx(first, rel=1e-3, abs=1e-5)
    for one, other in zip(*(learner.model.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_model_that_changes_logits_behind_its_matrix_is_only_read_as_a_whole():
    model = factory.build(DECODER, VOCABULARY, seed=1)
    model.config.final_logit_softcapping = 30.0
    prefixes, *_ = groups()
    Readout.of(model, prefixes, whole=True)
    with pytest.raises(ValueError, match=r"the model has final_logit_softcapping, and .* too many to be held at once"):
        Readout.of(model, prefixes, whole=False)
