"""The critic: its start, its learning, golden updates of a policy with a critic, and the continuation of both."""

import copy
import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch

from rayexp.errors import NotFiniteError
from rayexp.models import factory
from rayexp.models.values import with_value_head
from rayexp.rl.critic import Critic, ValueTargets, critic_statistics
from rayexp.rl.learner import GRPOLearner, MismatchError
from rayexp.rl.rollouts import rollout_batches
from rayexp.rl.scoring import UniquePrefixes
from rayexp.stages import AdamW
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO, OPTIMISER
from tests.fixtures.rollouts import grpo_spec, rollouts
from tests.fixtures.weights import same, weights

#: Golden numbers. A change that should not alter results leaves them alone.
GOLDEN_UPDATES = [
    (-0.333333, 0.727850, 0.341880, 0.0),
    (-0.314232, 0.616876, 0.330651, -0.003682),
    (-0.254256, 0.504035, 0.299151, -0.006425),
]


def fresh(seed=1):
    return factory.build(MICRO, VOCABULARY, seed)


def critic_of(learner):
    assert learner.critic is not None
    return learner.critic


def targets_of(batches):
    """Return the targets of a critic for these rollouts, without a KL in the reward."""
    return [
        ValueTargets(
            UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC),
            torch.tensor(batch.rewards_PG).reshape(-1, 1).expand(batch.tokens_NC.shape),
            torch.tensor(batch.mask_NC),
        )
        for batch in batches
    ]


def test_it_starts_from_the_policy_and_expects_nothing(model):
    before, state = weights(model), torch.get_rng_state()
    found = with_value_head(copy.deepcopy(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(weights(model), before)
    trunk = {name: tensor for name, tensor in weights(found).items() if not name.startswith("lm_head")}
    assert trunk
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.items())
    (targets, *_) = targets_of(rollout_batches(*rollouts(model)))
    values_NC = Critic(model, OPTIMISER, 1).values(targets.prefixes)
    assert values_NC.shape == targets.mask_NC.shape
    assert not values_NC.any()


def test_it_learns_the_value_of_every_prefix_of_a_fixed_policy():
    """Use a policy that is uniform over two letters, and all completions of three letters. The squared error is then
    smallest at the exact values, which are the mean returns of the completions with a common prefix."""
    prompts = np.array([[1, 5, 7], [1, 6, 7]])
    tokens_NC = np.array([*itertools.product((8, 9), repeat=3)] * len(prompts))
    returns_N = np.random.default_rng(0).random(len(tokens_NC)).astype(np.float32)
    targets = ValueTargets(
        UniquePrefixes.of(prompts, tokens_NC), torch.tensor(returns_N)[:, None].expand(-1, 3), torch.ones(16, 3)
    )
    critic = Critic(factory.build(DECODERS["toy"], VOCABULARY, 1), AdamW(learning_rate=3e-3), 150)
    for _ in range(150):
        critic.step([targets])
    values_NC = critic.values(targets.prefixes)
    groups = returns_N.reshape(2, 2, 2, 2)  # by prompt and letters
    exact = [groups.mean(axis=axes, keepdims=True) + 0 * groups for axes in ((1, 2, 3), (2, 3), (3,))]
    exact_NC = torch.tensor(np.stack([values.ravel() for values in exact], axis=1))
    torch.testing.assert_close(values_NC, exact_NC, rtol=0, atol=0.01)
    explained = critic_statistics([(values_NC, targets.returns_NC, targets.mask_NC)])["critic_explained"]
    assert explained == pytest.approx((exact_NC.var() / targets.returns_NC.var()).item(), abs=0.01)


def test_what_is_explained_is_a_share_of_the_variance_over_tokens():
    mask_NC = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    returns_NC = torch.tensor([[1.0, 1.0], [0.0, math.nan]])
    values_NC = torch.tensor([[0.5, 1.0], [0.5, math.nan]])
    fit = critic_statistics([(values_NC, returns_NC, mask_NC)])
    errors, returns = np.array([0.5, 0.0, -0.5]), np.array([1.0, 1.0, 0.0])
    assert fit["critic_loss"] == pytest.approx(np.mean(errors**2))
    assert fit["critic_explained"] == pytest.approx(1 - errors.var() / returns.var())


def test_nothing_is_explained_where_all_returns_are_equal():
    fit = critic_statistics([(torch.zeros(2, 2), torch.full((2, 2), 0.1), torch.ones(2, 2))])
    assert fit == {"critic_loss": pytest.approx(0.01)}


def test_golden_updates_with_a_critic(model):
    """Take three updates on the same rollouts. Compare loss, gradient norm, and the critic's error and fit before
    each."""
    learner = GRPOLearner(grpo_spec(advantage="critic"), model)
    batches = rollout_batches(*rollouts(model))
    found = [learner.update(batches, max_logprob_mismatch=math.inf) for _ in range(3)]
    names = ("loss", "grad_norm", "critic_loss", "critic_explained")
    for step, golden in zip(found, GOLDEN_UPDATES, strict=True):
        assert [step[name] for name in names] == pytest.approx(golden, abs=1e-5)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_without_a_value_yet_the_advantage_is_the_reward(model, kl_in):
    """Take the first update. Its KL is zero and every ratio is 1, so the loss is minus the mean reward."""
    batches = rollout_batches(*rollouts(model))
    found = GRPOLearner(grpo_spec(advantage="critic", kl_in=kl_in), model).update(batches, math.inf)
    reward = np.concatenate([batch.rewards_PG for batch in batches]).mean()
    assert found["loss"] == pytest.approx(-reward, abs=1e-6)
    assert found["critic_loss"] == pytest.approx(reward, abs=0.05)  # rewards are 0 or 1; mean over tokens


@pytest.mark.parametrize(
    "changes", [{}, {"updates": 2}, {"kl_in": "reward"}, {"staleness": 1, "updates": 2, "kl_in": "reward"}], ids=str
)
def test_a_learner_with_a_critic_that_is_restored_goes_on_bitwise(model, changes):
    spec, batches = grpo_spec(advantage="critic", steps=3, **changes), rollout_batches(*rollouts(model))
    whole = GRPOLearner(spec, fresh())
    expected = [whole.update(batches, math.inf) for _ in range(3)]
    before, after = GRPOLearner(spec, fresh()), GRPOLearner(spec, fresh())
    found = [before.update(batches, math.inf)]
    after.restore(copy.deepcopy(before.state()))
    assert (after.completed, critic_of(after).trainer.completed_steps) == (1, spec.updates)
    found += [after.update(batches, math.inf) for _ in range(2)]
    assert found == expected
    assert same(weights(after.model), weights(whole.model))
    assert same(weights(critic_of(after).model), weights(critic_of(whole).model))
    assert not same(weights(critic_of(GRPOLearner(spec, fresh())).model), weights(critic_of(whole).model))


def test_the_state_of_a_learner_without_a_critic_says_nothing_of_one(model):
    assert not [name for name in GRPOLearner(grpo_spec(), model).state() if name.startswith("critic.")]


def test_several_updates_refer_to_the_values_before_the_first(model):
    """Expect the statistics of one update and two steps of the critic, as for several updates of the policy."""
    batches = rollout_batches(*rollouts(model))
    once, twice = (GRPOLearner(grpo_spec(advantage="critic", updates=n), fresh()) for n in (1, 2))
    values = [critic_of(twice).values(target.prefixes) for target in targets_of(batches)]
    with mock.patch.object(critic_of(twice), "values", side_effect=values) as asked:
        one, two = once.update(batches, math.inf), twice.update(batches, math.inf)
    assert asked.call_count == len(batches)
    assert one == pytest.approx(two | {"clipped": 0.0}, abs=1e-6)
    assert critic_of(twice).trainer.completed_steps == 2


def test_an_error_of_the_critic_leaves_policy_and_critic_alone(model):
    learner = GRPOLearner(grpo_spec(advantage="critic"), model)
    batches = rollout_batches(*rollouts(model))
    with torch.no_grad():
        critic_of(learner).model.lm_head.bias.fill_(math.inf)
    before, expected = weights(model), weights(critic_of(learner).model)
    values = [torch.zeros(batch.tokens_NC.shape) for batch in batches]
    finite = r"\(log-probabilities and KLs of its prompts, 0 to \d+, are finite\)"
    told = pytest.raises(NotFiniteError, match=rf"the loss is inf, in the critic {finite}; lower optimiser")
    with mock.patch.object(critic_of(learner), "values", side_effect=values), told:
        learner.update(batches, math.inf)
    assert same(weights(model), before)
    assert same(weights(critic_of(learner).model), expected)
    assert learner.completed == critic_of(learner).trainer.completed_steps == 0


def test_a_mismatch_leaves_the_critic_alone(model):
    learner = GRPOLearner(grpo_spec(advantage="critic"), model)
    batch, drawn, rewards_PG = rollouts(model)
    before = weights(critic_of(learner).model)
    drawn.logprobs_NC[5, 0] += 0.05
    with pytest.raises(MismatchError):
        learner.update(rollout_batches(batch, drawn, rewards_PG), max_logprob_mismatch=0.02)
    assert same(weights(critic_of(learner).model), before)
