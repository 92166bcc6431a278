"""A learner of two ranks, each with a part of every weight: the numbers of one rank, and the same errors on both."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from rayexp.errors import NotFiniteError
from rayexp.execution.rft import Learner as RFTLearner
from rayexp.models import factory
from rayexp.rl.learner import GRPOLearner, MismatchError
from rayexp.rl.rollouts import own_share, rollout_batches
from rayexp.tasks.strings.symbols import VOCABULARY
from rayexp.training import checkpoint
from rayexp.training.context import Alone
from rayexp.training.parallel import spread
from tests.fixtures.factories import MICRO, rft, tiny_chain
from tests.fixtures.ranks import run_ranks
from tests.fixtures.rollouts import TASK, grpo_spec, rollouts
from tests.fixtures.weights import same, weights

STEPS = 3
GRPO = {
    "grpo": grpo_spec(),
    "another_reference": grpo_spec(kl_estimator="k3"),
    "no_kl": grpo_spec(kl_beta=0.0),
    "kl_in_reward": grpo_spec(kl_in="reward", kl_estimator="k1"),
    "dr_grpo": grpo_spec(advantage="mean_only", loss_reduction="token_sum"),
    "leave_one_out": grpo_spec(advantage="leave_one_out"),
    "several_updates": grpo_spec(updates=2),
    "stale": grpo_spec(staleness=1),
    "critic": grpo_spec(advantage="critic"),
    "temperature": grpo_spec(temperature=0.5),
}
RFT = rft(tiny_chain(TASK).sft)
#: Adam divides a gradient by the root of its mean square. So rounding of a gradient near 0 can move its weight by a
#: full step. 1e-5 is a hundredth of that.
ROUNDING = 1e-5


def policy():
    return factory.build(MICRO, VOCABULARY, 0)


def batches_of(tokens=None):
    """Return rollouts of prompts of two lengths, in one batch for each length. tokens: most tokens of a batch; with 1
    each batch has one prompt, so one of two ranks gets none."""
    return rollout_batches(*rollouts(policy()), tokens)


def trained(learner, batches):
    """Take ``STEPS`` steps on the batches. Return the statistics of each, and the final weights."""
    found = [learner.update(batches, max_logprob_mismatch=math.inf) for _ in range(STEPS)]
    return found, learner.weights()


def two_ranks(folder, context):
    """Learn on two ranks, and save the results of rank 0."""

    def parted(model=None):
        return spread((model or policy()) if context.rank == 0 else None, torch.device("cpu"), "fp32", context)

    found = {}
    for name, stage in GRPO.items():
        other = (parted(moved(policy())),) if name == "another_reference" else ()
        found[name] = trained(GRPOLearner(stage, parted(), *other, ranks=context), batches_of())
    found["in_pieces"] = trained(GRPOLearner(GRPO["grpo"], parted(), ranks=context), batches_of(1))
    found["rft"] = trained(RFTLearner(RFT, parted(), ranks=context), batches_of())
    _refusals(parted, context)
    _killed(folder, parted, context)
    if context.rank == 0:
        torch.save(found, folder / "found.pt")


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def _refusals(parted, context):
    """Verify that an error on one rank ends the step on both, names its prompt, and changes nothing."""
    learner = GRPOLearner(grpo_spec(), parted(), ranks=context)
    before = learner.weights()
    for wrong, error, words in (
        (0.5, MismatchError, r"differ by 0\.5 nats"),
        (math.nan, NotFiniteError, "the sampler's log-probability is not finite for prompt 0"),
    ):
        batch, drawn, rewards_PG = rollouts(policy())
        drawn.logprobs_NC[0, 0] += wrong
        with pytest.raises(error, match=words):
            learner.update(rollout_batches(batch, drawn, rewards_PG), max_logprob_mismatch=0.02)
    reference = learner.reference
    broken = parted()
    with torch.no_grad():  # a symbol in the prompts of only one rank would do as well
        for parameter in broken.parameters():
            parameter.mul_(math.nan)
    learner.reference = broken
    with pytest.raises(NotFiniteError, match=r"the policy's KL to the reference is not finite for prompt 0, 1, "):
        learner.update(batches_of(), max_logprob_mismatch=math.inf)
    learner.reference = reference
    after = learner.weights()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert learner.completed == 0


def _killed(folder, parted, context):
    """Save a learner with a critic, continue with another one, and compare bitwise."""
    stage = GRPO["critic"]
    first = GRPOLearner(stage, parted(), ranks=context)
    first.update(batches_of(), math.inf)
    checkpoint.save(first.state(), folder / "saved", context.ranks)
    context.barrier()
    second = GRPOLearner(stage, parted(moved(policy())), parted(), ranks=context)
    state = second.state()
    checkpoint.load(state, folder / "saved", context.ranks)
    second.restore(state)
    expected, found = (learner.update(batches_of(), math.inf) for learner in (first, second))
    assert found == expected
    expected, found = first.weights(), second.weights()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learners")
    run_ranks(partial(two_ranks, folder), folder)
    return torch.load(folder / "found.pt", weights_only=False)


def require_equal(found, expected):
    (steps, ours), (expected_steps, theirs) = found, expected
    for step, other in zip(steps, expected_steps, strict=True):
        assert step == pytest.approx(other, abs=1e-4, rel=1e-4)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", GRPO)
def test_two_ranks_learn_what_one_does(found, name):
    other = (moved(policy()),) if name == "another_reference" else ()
    require_equal(found[name], trained(GRPOLearner(GRPO[name], policy(), *other), batches_of()))


def test_in_pieces_too(found):
    require_equal(found["in_pieces"], trained(GRPOLearner(GRPO["grpo"], policy()), batches_of()))


def test_two_ranks_imitate_what_one_does(found):
    require_equal(found["rft"], trained(RFTLearner(RFT, policy()), batches_of()))


def test_every_group_is_of_one_rank_and_none_has_many_more():
    batches, ranks = batches_of(200), 3
    shares = []
    for rank in range(ranks):
        context = Alone()
        context.rank, context.ranks = rank, ranks
        shares.append(own_share(batches, context))
    assert all(len(share) == len(batches) for share in shares)
    numbers = [[int(n) for batch in share for n in batch.numbers_P] for share in shares]
    assert sorted(n for own in numbers for n in own) == sorted(int(n) for batch in batches for n in batch.numbers_P)
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 2
    for batch, *parts in zip(batches, *shares, strict=True):
        assert sum(len(part.tokens_NC) for part in parts) == len(batch.tokens_NC)
        for part in parts:
            assert len(part.tokens_NC) == part.rewards_PG.size


def test_the_reference_is_a_copy_that_does_not_learn():
    learner = GRPOLearner(grpo_spec(), policy())
    assert learner.reference is not None
    before = weights(learner.reference)
    learner.update(batches_of(), math.inf)
    assert same(weights(learner.reference), before)
    assert not same(weights(learner.model), before)
