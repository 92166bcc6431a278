"""The learner of rejection-sampling fine-tuning: its selection of completions, its updates, and its continuation."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch

from rayexp.errors import NotFiniteError
from rayexp.execution.rft import Learner, right_completions
from rayexp.models import factory
from rayexp.rl.learner import MismatchError
from rayexp.rl.rollouts import RolloutBatch, rollout_batches
from rayexp.rl.scoring import UniquePrefixes, group_logprobs
from rayexp.stages import RFT
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO, OPTIMISER, pretrain, rft
from tests.fixtures.rollouts import rollouts
from tests.fixtures.weights import same, weights

SPEC = rft(
    pretrain(decoder=MICRO),
    prompts_per_round=12,
    batch_samples=6,
    optimiser=OPTIMISER.model_copy(update={"schedule": "cosine"}),
)


def fresh():
    """Return a fresh model with the weights of the fixture ``model``."""
    return factory.build(MICRO, VOCABULARY, seed=1)


def drawn(model):
    """Return rollouts with some right completions, and the same ones with none."""
    batch, completions, rewards_PG = rollouts(model)
    return [rollout_batches(batch, completions, rewards_PG * worth) for worth in (1, 0)]


def moments(learner):
    """Return copies of all tensors of the optimiser."""
    return {n: tensor.clone() for n, tensor in learner.state().items() if n.startswith(("step.", "exp_avg"))}


def mean_logprob(model, batches):
    """Return the mean log-probability of all tokens of the completions that are kept of these rollouts."""
    total, tokens = 0.0, 0.0
    for batch in map(right_completions, batches):
        with torch.no_grad():
            logprobs_NCV = group_logprobs(model, UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC))
        chosen_NC = logprobs_NCV.gather(-1, torch.tensor(batch.tokens_NC)[..., None]).squeeze(-1)
        total += (chosen_NC * torch.tensor(batch.mask_NC)).sum().item()
        tokens += batch.mask_NC.sum()
    return total / tokens


def handwritten(rewards_PG):
    """Return two prompts with three completions each. For each prompt, one completion is drawn twice."""
    tokens_NC = np.array([[8, 2], [8, 2], [9, 2], [8, 2], [9, 2], [9, 2]])
    return RolloutBatch(
        numbers_P=np.array([7, 3]),
        prompts_PT=np.array([[1, 10, 5], [1, 11, 5]]),
        tokens_NC=tokens_NC,
        mask_NC=np.ones(tokens_NC.shape, np.float32),
        sampler_logprobs_NC=-np.arange(12, dtype=np.float32).reshape(6, 2),
        rewards_PG=np.array(rewards_PG, dtype=np.float32),
    )


# The kept completions


@pytest.mark.parametrize(
    ("rewards_PG", "rows"),
    [
        ([[1, 1, 1], [1, 1, 1]], [0, 2, 3, 4]),  # a completion of both prompts is kept for each
        ([[1, 1, 0], [0, 1, 1]], [0, 4]),
        ([[0, 0, 1], [0, 0, 0]], [2]),
        ([[0, 0, 0], [0, 0, 0]], []),
    ],
)
def test_each_distinct_right_completion_is_kept_once_a_prompt(rewards_PG, rows):
    batch = handwritten(rewards_PG)
    kept = right_completions(batch)
    prompts = np.array(rows, dtype=int) // 3
    assert kept.tokens_NC.tolist() == batch.tokens_NC[rows].tolist()
    assert kept.numbers_P.tolist() == batch.numbers_P[prompts].tolist()
    assert kept.prompts_PT.tolist() == batch.prompts_PT[prompts].tolist()
    assert kept.sampler_logprobs_NC.tolist() == batch.sampler_logprobs_NC[rows].tolist()
    assert kept.rewards_PG.tolist() == [[1.0]] * len(rows)


def test_what_is_kept_of_real_rollouts_is_right_and_distinct(model):
    batches, _ = drawn(model)
    found = {
        (number, row[mask > 0].tobytes())
        for batch in map(right_completions, batches)
        for number, row, mask in zip(batch.numbers_P, batch.tokens_NC, batch.mask_NC, strict=True)
    }
    wanted = {
        (batch.numbers_P[i // 4], batch.tokens_NC[i][batch.mask_NC[i] > 0].tobytes())
        for batch in batches
        for i in np.flatnonzero(batch.rewards_PG.reshape(-1))
    }
    assert found == wanted
    assert len(found) == sum(len(right_completions(batch).tokens_NC) for batch in batches)


# An update


def test_kept_completions_get_likelier_and_the_loss_falls(model):
    batches, _ = drawn(model)
    learner = Learner(SPEC.model_copy(update={"batch_samples": 1000}), model)  # all of them in each update
    before = mean_logprob(model, batches)
    losses = [learner.update(batches, math.inf)["loss"] for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert mean_logprob(model, batches) > before


def test_the_first_loss_is_the_mean_negative_log_likelihood_of_a_token(model):
    batches, _ = drawn(model)
    expected = -mean_logprob(model, batches)
    kept = sum(len(right_completions(batch).tokens_NC) for batch in batches)
    learner = Learner(SPEC.model_copy(update={"updates": 1, "batch_samples": kept}), model)
    found = learner.update(batches, 0.02)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["kept"] == kept
    best = [rewards_G.max() for batch in batches for rewards_G in batch.rewards_PG]
    assert found["solved_prompts"] == np.mean(np.array(best) > 0)


def test_a_round_without_a_right_completion_teaches_nothing_and_counts(model):
    batches, wrong = drawn(model)
    learner = Learner(SPEC, model)
    learner.update(batches, 0.02)
    state, optimiser = weights(model), moments(learner)
    found = learner.update(wrong, math.inf)
    assert found["kept"] == found["solved_prompts"] == 0
    assert not {"loss", "grad_norm"} & found.keys()
    assert learner.completed == 2
    assert same(weights(model), state)
    assert same(moments(learner), optimiser)


def test_the_learning_rate_of_a_round_depends_on_its_number_alone(model):
    """Include a round without a right completion."""
    batches, wrong = drawn(model)

    def rates(rounds):
        learner, found = Learner(SPEC, fresh()), []
        for each in rounds:
            learner.update(each, math.inf)
            found.append(learner.trainer._optimiser.param_groups[0]["lr"])
        return found

    one, other = rates([batches] * 4), rates([batches, wrong, wrong, batches])
    assert one[3] == other[3]
    assert one[3] < one[1]


def test_every_number_has_a_definition_and_every_definition_a_number(model):
    batches, wrong = drawn(model)
    learner = Learner(SPEC, model)
    logged = {f"rft/{name}" for each in (batches, wrong) for name in learner.update(each, math.inf)}
    assert logged == {metric.name for metric in RFT.metrics if not metric.name.startswith("rollout/")}


# Refusals


def test_samples_of_another_policy_are_refused(model):
    batch, completions, rewards_PG = rollouts(model)
    before = weights(model)
    learner = Learner(SPEC, model)
    completions.logprobs_NC[5, 0] += 0.05
    with pytest.raises(MismatchError, match=r"differ by 0\.05 nats .* max_logprob_mismatch=0\.02; raise that"):
        learner.update(rollout_batches(batch, completions, rewards_PG), 0.02)
    assert same(weights(model), before)
    assert learner.completed == 0


def test_numbers_that_are_none_are_refused_with_their_prompt(model):
    batch, completions, rewards_PG = rollouts(model)
    learner = Learner(SPEC, model)
    spoilt_PG = rewards_PG.copy()
    spoilt_PG[7, 2] = np.nan
    with pytest.raises(NotFiniteError, match="the reward is not finite for prompt 7"):
        learner.update(rollout_batches(batch, completions, spoilt_PG), 0.02)
    with torch.no_grad():
        model.model.embed_tokens.weight[batch.prompts[3][1]] = math.nan
    with pytest.raises(NotFiniteError, match=r"the policy's log-probability is not finite for prompt .*3"):
        learner.update(rollout_batches(batch, completions, rewards_PG), 0.02)
    assert learner.completed == 0


# The order of updates, and resume


def orders(seed, rounds):
    """Return the kept completions of each update of each round, as number of the prompt and tokens."""
    learner, given = Learner(SPEC.model_copy(update={"seed": seed}), fresh()), []
    step = learner.trainer.step

    def record(losses, *rest):
        losses = list(losses)
        shares = [loss.args[0] for loss in losses]
        given[-1].append(
            sorted(
                (int(number), row[mask > 0].tobytes())
                for share in shares
                for number, row, mask in zip(share.numbers_P, share.tokens_NC, share.mask_NC, strict=True)
            )
        )
        return step(losses, *rest)

    with mock.patch.object(learner.trainer, "step", record):
        for each in rounds:
            given.append([])
            learner.update(each, math.inf)
    return given


def test_the_order_of_updates_depends_on_seed_and_round_alone(model):
    batches, wrong = drawn(model)
    first, second = orders(0, [batches, batches])
    assert first != second
    assert orders(0, [wrong, batches]) == [[], second]
    assert orders(1, [batches]) != [first]
    assert [len(update) for update in first] == [SPEC.batch_samples] * SPEC.updates


def test_updates_go_through_the_kept_completions_in_epochs(model):
    batches, _ = drawn(model)
    (updates,) = orders(0, [batches])
    seen = [each for update in updates for each in update]
    kept = sum(len(right_completions(batch).tokens_NC) for batch in batches)
    assert {seen.count(each) for each in seen} <= {len(seen) // kept, len(seen) // kept + 1}


def test_a_learner_that_is_restored_goes_on_bitwise(model):
    batches, wrong = drawn(model)
    rounds = [batches, wrong, batches]
    whole = Learner(SPEC, fresh())
    expected = [whole.update(each, math.inf) for each in rounds]
    before, after = Learner(SPEC, fresh()), Learner(SPEC, factory.build(MICRO, VOCABULARY, seed=2))
    found = [before.update(rounds[0], math.inf)]
    after.restore(copy.deepcopy(before.state()))
    assert after.completed == 1
    found += [after.update(each, math.inf) for each in rounds[1:]]
    assert found == expected
    assert same(weights(after.model), weights(whole.model))
    assert same(moments(after), moments(whole))
