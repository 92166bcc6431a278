"""Batches of rollouts."""

import numpy as np
import pytest
import torch

from rayexp.models import factory
from rayexp.rl.learner import GRPOLearner
from rayexp.rl.prompts import PromptBatch
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.base import Completions
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO
from tests.fixtures.rollouts import grpo_spec, rollouts
from tests.fixtures.weights import weights


def test_rollout_batches_keep_prompts_completions_and_rewards_together(model):
    batch, drawn, rewards_PG = rollouts(model)
    shuffle = [7, 0, 11, 3, 8, 1, 9, 2, 10, 4, 6, 5]
    rows = [i * 4 + j for i in shuffle for j in range(4)]
    shuffled = Completions(drawn.tokens_NC[rows], drawn.logprobs_NC[rows], drawn.length_N[rows], 0)
    prompts = PromptBatch(shuffle, [batch.prompts[i] for i in shuffle], batch.seeds, batch.max_tokens)
    batches = rollout_batches(prompts, shuffled, rewards_PG[shuffle])

    def lines(batch):
        for n, (tokens, mask, logprobs) in enumerate(
            zip(batch.tokens_NC, batch.mask_NC, batch.sampler_logprobs_NC, strict=True)
        ):
            length = int(mask.sum())
            prompt, reward = batch.prompts_PT[n // 4], batch.rewards_PG[n // 4, n % 4]
            yield (
                int(batch.numbers_P[n // 4]),
                prompt.tolist(),
                tokens[:length].tolist(),
                logprobs[:length].tolist(),
                float(reward),
            )

    expected = [
        (
            batch.numbers[n // 4],
            batch.prompts[n // 4],
            row,
            drawn.logprobs_NC[n, : len(row)].tolist(),
            float(rewards_PG[n // 4, n % 4]),
        )
        for n, row in enumerate(drawn.rows)
    ]
    assert sorted(line for batch in batches for line in lines(batch)) == sorted(expected)
    lengths = [batch.prompts_PT.shape[1] for batch in batches]
    assert lengths == sorted(set(lengths))
    assert len(lengths) > 1


def test_a_step_in_pieces_is_the_whole_step():
    """Add up the gradients of the pieces. Groups stay together."""
    learners = [GRPOLearner(grpo_spec(), factory.build(MICRO, VOCABULARY, seed=1)) for _ in range(2)]
    drawn = rollouts(learners[0].model)
    whole, pieces = rollout_batches(*drawn), rollout_batches(*drawn, tokens=60)
    assert len(pieces) > 2 * len(whole)
    for piece in pieces:
        prompts, tokens = piece.prompts_PT.shape[1], piece.tokens_NC.shape[1]
        assert len(piece.tokens_NC) == 4 or len(piece.tokens_NC) * (prompts + tokens) <= 60
    assert [n for piece in pieces for n in piece.numbers_P] == [n for batch in whole for n in batch.numbers_P]
    one, other = (learner.update(part, 0.02) for learner, part in zip(learners, (whole, pieces), strict=True))
    assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    for a, b in zip(*(learner.model.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_completions_that_were_cut_off_can_be_left_out(model):
    batch, drawn, rewards_PG = rollouts(model)
    ended_N = drawn.ended(VOCABULARY)
    assert list(ended_N) == [row[-1] == VOCABULARY.eos for row in drawn.rows]
    assert 0 < ended_N.sum() < len(ended_N)
    other = Completions(drawn.tokens_NC.copy(), drawn.logprobs_NC, drawn.length_N, 0)
    other.tokens_NC[~ended_N, 0] = 9  # other tokens there change nothing
    updates = []
    for completions in (drawn, other):
        batches = rollout_batches(batch, completions, rewards_PG, learnt_N=ended_N)
        assert sum(part.mask_NC.any(axis=1).sum() for part in batches) == ended_N.sum()
        learner = GRPOLearner(grpo_spec(), factory.build(MICRO, VOCABULARY, 1))
        learner.update(batches, max_logprob_mismatch=float("inf"))
        updates.append(weights(learner.model))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*map(dict.values, updates), strict=True))
    none = rollout_batches(batch, drawn, rewards_PG, learnt_N=np.zeros_like(ended_N))
    assert learner.update(none, max_logprob_mismatch=float("inf"))["grad_norm"] == 0
