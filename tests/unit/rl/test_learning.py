"""GRPO learns: the mean reward rises with every advantage, place of the KL and reward, and with no wrong loss.

Other tests compare one step with a formula. These check that thirty steps do learn, with a stage's learner, sampler and
rewards. Over seeds, the reward rose by 0.38 or more, and by at most 0.01 with a wrong loss.
"""

import itertools
from dataclasses import replace
from unittest import mock

import pytest
import torch

from rayexp.objectives.advantages import ADVANTAGES
from rayexp.objectives.kl import ESTIMATORS
from rayexp.objectives.losses import grpo_loss
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.rewards.letters_sum import LettersSum
from rayexp.rewards.shaped import Shaped
from rayexp.rewards.steps import Steps
from rayexp.rl import learner as learner_module
from tests.fixtures.learnable import gain, stage_of

#: A rise of the mean reward by this much is learning, and by a sixth of it noise.
LEARNT = 0.3
NOISE = LEARNT / 6

REWARDS = [(Letters(),), (LettersSum(),), (Steps(),), (Answer(), Shaped())]
OTHERS = [{"updates": 2}, {"loss_reduction": "token_sum"}]


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_mean_reward_rises(advantage):
    assert gain(stage_of(advantage=advantage)) > LEARNT


@pytest.mark.slow
@pytest.mark.parametrize(("advantage", "estimator"), itertools.product(ADVANTAGES, ESTIMATORS))
def test_it_rises_with_the_kl_in_the_reward(advantage, estimator):
    assert gain(stage_of(advantage=advantage, kl_in="reward", kl_estimator=estimator)) > LEARNT


@pytest.mark.slow
@pytest.mark.parametrize("rewards", REWARDS, ids=lambda rewards: rewards[-1].kind)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_every_reward_rises(advantage, rewards):
    assert gain(stage_of(advantage=advantage, rewards=rewards)) > LEARNT


@pytest.mark.slow
@pytest.mark.parametrize("changes", OTHERS, ids=str)
@pytest.mark.parametrize("advantage", ["group_std", "critic"])
def test_it_rises_with_other_settings(advantage, changes):
    assert gain(stage_of(advantage=advantage, **changes)) > LEARNT


# Wrong losses, which the tests above would all find


def flipped(scores, mask_NC, advantages, *rest):
    """Return the loss with its sign flipped."""
    loss = grpo_loss(scores, mask_NC, advantages, *rest)
    return replace(loss, loss_N=-loss.loss_N)


def zeroed(scores, mask_NC, advantages, *rest):
    """Return a loss that has no gradient."""
    loss = grpo_loss(scores, mask_NC, advantages, *rest)
    return replace(loss, loss_N=0 * loss.loss_N)


def displaced(scores, mask_NC, advantages, *rest):
    """Return the loss with each completion's advantage replaced by its neighbour's in the batch."""
    moved = replace(advantages, advantage_NC=torch.roll(advantages.advantage_NC, 1, dims=0))
    return grpo_loss(scores, mask_NC, moved, *rest)


def without_rewards(scores, mask_NC, advantages, *rest):
    """Return the loss of the KL alone."""
    return grpo_loss(scores, mask_NC, replace(advantages, advantage_NC=0 * advantages.advantage_NC), *rest)


@pytest.mark.parametrize(
    "wrong",
    [flipped, zeroed, *(pytest.param(loss, marks=pytest.mark.slow) for loss in (displaced, without_rewards))],
)
@pytest.mark.parametrize("advantage", ["group_std", "critic"])
def test_a_wrong_loss_teaches_nothing(advantage, wrong):
    with mock.patch.object(learner_module, "grpo_loss", wrong):
        assert gain(stage_of(advantage=advantage)) < NOISE
