"""The GRPO learner: golden updates, the reference policy of several updates, and refusals."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from rayexp.config import RunConfig
from rayexp.models import factory
from rayexp.objectives.advantages import Earnings, advantages_of
from rayexp.objectives.losses import GRPOSettings, grpo_loss
from rayexp.objectives.reductions import sequence_mean
from rayexp.rl.learner import GRPOLearner, MismatchError
from rayexp.rl.rollouts import rollout_batches
from rayexp.rl.scoring import UniquePrefixes, group_logprobs, score_tokens
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import AdamW
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO
from tests.fixtures.rollouts import grpo_spec, rollouts
from tests.fixtures.weights import same, weights

#: Golden numbers. A change that should not alter results leaves them alone.
GOLDEN_UPDATES = [(0.0, 0.0, 1.351103), (0.000993, 0.047686, 1.270126), (0.008700, 0.420324, 1.135734)]


def test_golden_grpo_updates(model):
    """Take three updates on the same rollouts. Compare loss, KL to the reference and gradient norm of each."""
    learner = GRPOLearner(grpo_spec(), model)
    reference = weights(learner.reference)
    batches = rollout_batches(*rollouts(model))
    found = [learner.update(batches, max_logprob_mismatch=math.inf) for _ in range(3)]
    values = [(step["loss"], step["kl"], step["grad_norm"]) for step in found]
    for value, golden in zip(values, GOLDEN_UPDATES, strict=True):
        assert value == pytest.approx(golden, abs=1e-5)
    assert found[0]["max_logprob_mismatch"] < 1e-5
    assert found[0]["sampler_kl"] == pytest.approx(0, abs=1e-5)
    assert found[0]["effective_sample_share"] == pytest.approx(1, abs=1e-5)
    assert found[2]["effective_sample_share"] < 0.999
    assert same(weights(learner.reference), reference)
    assert not same(weights(learner.model), reference)


def test_samples_of_another_policy_are_refused(model):
    learner = GRPOLearner(grpo_spec(), model)
    batch, drawn, rewards_PG = rollouts(model)
    before = weights(model)
    drawn.logprobs_NC[5, 0] += 0.05
    with pytest.raises(MismatchError, match=r"differ by 0\.05 nats .* max_logprob_mismatch=0\.02; raise that"):
        learner.update(rollout_batches(batch, drawn, rewards_PG), max_logprob_mismatch=0.02)
    assert same(weights(model), before)
    assert learner.trainer.completed_steps == 0


def test_a_policy_learns_at_the_temperature_that_it_was_sampled_at(model):
    """Expect an error at another temperature, because that is another policy."""
    batch, _, rewards_PG = rollouts(model)
    drawn = TorchSampler(model).generate(*batch.request(4), temperature=0.5)
    batches = rollout_batches(batch, drawn, rewards_PG)
    cool, usual = (GRPOLearner(grpo_spec(temperature=each), copy.deepcopy(model)) for each in (0.5, 1.0))
    assert cool.update(batches, max_logprob_mismatch=1e-4)["max_logprob_mismatch"] < 1e-5
    with pytest.raises(MismatchError):
        usual.update(batches, max_logprob_mismatch=1e-4)


def test_the_kl_is_that_at_the_temperature_too(model):
    """Halve the logits of two decoders. At half the temperature they differ as much as before at temperature 1."""
    batches = rollout_batches(*rollouts(model))
    halved = copy.deepcopy(model)
    with torch.no_grad():
        halved.lm_head.weight /= 2
    moved = {}
    for temperature, start in ((1.0, model), (0.5, halved)):
        learner = GRPOLearner(grpo_spec(temperature=temperature), start, reference=copy.deepcopy(start))
        with torch.no_grad():
            learner.model.lm_head.weight += 0.01 * temperature
        moved[temperature] = learner.update(batches, math.inf)
    assert moved[0.5]["kl"] == pytest.approx(moved[1.0]["kl"], rel=1e-4)
    assert moved[0.5]["entropy"] == pytest.approx(moved[1.0]["entropy"], rel=1e-4)


def test_several_updates_start_from_the_policy_that_sampled(model):
    """Expect the statistics of the first update. The ratio of the second one refers to the policy before the first."""
    once, twice = (GRPOLearner(grpo_spec(updates=n), factory.build(MICRO, VOCABULARY, 1)) for n in (1, 2))
    batches = rollout_batches(*rollouts(model))
    one, two = (learner.update(batches, 0.02) for learner in (once, twice))
    assert one == pytest.approx(two | {"clipped": 0.0}, abs=1e-6)
    assert (once.trainer.completed_steps, twice.trainer.completed_steps) == (1, 2)
    assert not same(weights(once.model), weights(twice.model))
    once.update(batches, math.inf)  # its ratio refers to its own policy, not to the sampler's
    assert not same(weights(once.model), weights(twice.model))


def test_what_the_clip_cuts_is_counted_over_all_updates(model):
    """Take two updates. The first starts at a ratio of 1 and cuts nothing, so the mean is half the second's share."""
    spec = grpo_spec(kl_beta=0.0, clip_ratio=0.01)
    batches = rollout_batches(*rollouts(model))
    once, twice = (
        GRPOLearner(spec.model_copy(update={"updates": n}), factory.build(MICRO, VOCABULARY, 1)) for n in (1, 2)
    )
    settings = GRPOSettings(**{field.name: getattr(spec, field.name) for field in fields(GRPOSettings)})

    def scores(batch):
        """Return the scores of a batch under the present policy of ``once``."""
        with torch.no_grad():
            policy_NCV = group_logprobs(once.model, UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC))
            return score_tokens(policy_NCV, None, torch.tensor(batch.tokens_NC), torch.tensor(batch.mask_NC), "exact")

    def cut_by_the_next_update(batch, before):
        mask_NC, rewards_PG = torch.tensor(batch.mask_NC), torch.tensor(batch.rewards_PG)
        advantages = advantages_of(spec.advantage, Earnings(rewards_PG, mask_NC))
        clipped_NC = grpo_loss(scores(batch), mask_NC, advantages, settings, before.logprob_NC).clipped_NC
        return sequence_mean(clipped_NC.float(), mask_NC).sum().item()

    before = [scores(batch) for batch in batches]
    assert once.update(batches, 0.02)["clipped"] == 0
    completions = sum(len(batch.tokens_NC) for batch in batches)
    second = sum(map(cut_by_the_next_update, batches, before)) / completions
    assert second > 0.05
    assert twice.update(batches, 0.02)["clipped"] == pytest.approx(second / 2, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize("decoder", ["toy", "tiny", "small"])
def test_equal_rewards_leave_the_weights_alone(decoder, kl_beta, precision):
    """Compare to the last bit, also at the reference, where the KL's gradient is zero and not rounding noise."""
    model = factory.build(DECODERS[decoder], VOCABULARY, seed=1)
    learner = GRPOLearner(grpo_spec(kl_beta=kl_beta, optimiser=AdamW(learning_rate=1e-2, precision=precision)), model)
    assert (learner.reference is None) == (kl_beta == 0)
    before = weights(model)
    batch, drawn, rewards_PG = rollouts(model)
    batches = rollout_batches(batch, drawn, np.ones_like(rewards_PG))
    statistics = learner.update(batches, max_logprob_mismatch=0.1)
    assert statistics["grad_norm"] == 0
    assert same(weights(model), before)


def test_stale_samples_are_weighed_by_the_ratio_to_the_policy_that_drew_them(model):
    """Compare the gradient of the first update with a loss by hand: the mean over tokens of -min(r A, clip(r) A)."""
    spec = grpo_spec(staleness=1, kl_beta=0.0, advantage="mean_only")
    drawn = rollouts(factory.build(MICRO, VOCABULARY, seed=2))
    learner = GRPOLearner(spec, model)
    batches = rollout_batches(*drawn)
    total = torch.zeros(())
    for batch in batches:
        tokens_NC, mask_NC = torch.tensor(batch.tokens_NC), torch.tensor(batch.mask_NC)
        rewards_PG = torch.tensor(batch.rewards_PG)
        advantage_N1 = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)).reshape(-1, 1)
        logprobs_NCV = group_logprobs(model, UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC))
        chosen_NC = logprobs_NCV.gather(-1, tokens_NC[..., None]).squeeze(-1)
        ratio_NC = (chosen_NC - torch.tensor(batch.sampler_logprobs_NC)).exp()
        gain_NC = torch.minimum(ratio_NC * advantage_N1, ratio_NC.clamp(0.8, 1.2) * advantage_N1) * mask_NC
        total = total - (gain_NC.sum(dim=1) / mask_NC.sum(dim=1)).sum()
    (total / drawn[-1].size).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    model.zero_grad()
    found = learner.update(batches, max_logprob_mismatch=1e-9)
    assert found["grad_norm"] == pytest.approx(expected.item(), rel=1e-4)
    assert found["max_logprob_mismatch"] > 0.1
    assert found["clipped"] > 0
    with pytest.raises(MismatchError):
        GRPOLearner(grpo_spec(kl_beta=0.0), model).update(batches, max_logprob_mismatch=1e-9)


def test_weights_that_were_handed_out_do_not_follow_the_learner(model):
    learner = GRPOLearner(grpo_spec(), model)
    handed_out = learner.weights()
    before = {name: array.copy() for name, array in handed_out.items()}
    learner.update(rollout_batches(*rollouts(model)), 0.02)
    assert all((handed_out[name] == before[name]).all() for name in before)
    assert any((handed_out[name] != array).any() for name, array in learner.weights().items())


@pytest.mark.parametrize(
    ("stated", "precision", "limit"), [(None, "fp32", 0.02), (None, "bf16", 1.0), (0.1, "bf16", 0.1)]
)
def test_the_limit_on_mismatch_is_that_of_the_precision_unless_stated(stated, precision, limit):
    assert RunConfig(max_logprob_mismatch=stated).mismatch_limit(precision) == limit
