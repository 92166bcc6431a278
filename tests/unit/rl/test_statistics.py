"""The statistics of an update and of a step, against computations by hand on completions of a tiny policy."""

from dataclasses import replace

import pytest
import torch

from rayexp.objectives.kl import kl_to_reference
from rayexp.objectives.reductions import sequence_mean
from rayexp.rl.statistics import UpdateStatistics, step_statistics
from tests.fixtures.tiny_policy import (
    BETA,
    MASK,
    REFERENCE,
    TOKENS,
    close,
    logprobs_of,
    random_logits,
    rollouts_of,
    settings,
    statistics_of,
)


def test_statistics_are_sums_over_sequences():
    rows, rollouts = rollouts_of()
    policy_NCV = logprobs_of(random_logits(0))[rows]
    statistics = statistics_of(policy_NCV, rollouts, settings())
    kl_NC = kl_to_reference(policy_NCV, REFERENCE[rows], TOKENS[rows], MASK[rows], "exact")
    close(statistics["kl"], kl_NC.sum())
    entropy_NC = torch.distributions.Categorical(logits=policy_NCV).entropy()
    close(statistics["entropy"], sequence_mean(entropy_NC, MASK[rows]).sum())
    assert statistics["clipped"] == 0


@pytest.mark.parametrize("loss_reduction", ["token_sum", "sequence_mean"])
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_the_penalty_is_what_the_kl_costs_where_it_is_charged(kl_in, loss_reduction):
    """Expect the loss's reduction over tokens if the KL is in the loss, and the sum if it is in the reward."""
    rows, rollouts = rollouts_of()
    policy_NCV = logprobs_of(random_logits(0))[rows]
    statistics = statistics_of(policy_NCV, rollouts, settings(kl_in=kl_in, loss_reduction=loss_reduction))
    kl_NC = kl_to_reference(policy_NCV, REFERENCE[rows], TOKENS[rows], MASK[rows], "exact")
    tokens_N = MASK[rows].sum(dim=1) if (kl_in, loss_reduction) == ("loss", "sequence_mean") else torch.ones(6)
    close(statistics["kl_penalty"], (BETA * kl_NC.sum(dim=1) / tokens_N).sum())


def test_without_a_reference_there_is_neither_kl_nor_penalty():
    rows, rollouts = rollouts_of()
    statistics = statistics_of(logprobs_of(random_logits(0))[rows], replace(rollouts, reference_NCV=None), settings())
    assert not {"kl", "kl_penalty"} & statistics.keys()


def test_the_sampler_is_compared_with_the_policy_by_whole_completions():
    """Use log-probabilities of another policy than the learning one. A completion's log(p / q) is a sum over tokens."""
    rows, rollouts = rollouts_of(old=True)
    policy_NCV = logprobs_of(random_logits(0))[rows]
    statistics = statistics_of(policy_NCV, rollouts, settings())
    assert rollouts.old_logprob_NC is not None
    difference_NC = policy_NCV.gather(-1, rollouts.tokens_NC[..., None]).squeeze(-1) - rollouts.old_logprob_NC
    seen = [[difference_NC[n, c].item() for c in range(2) if MASK[rows][n, c]] for n in range(6)]
    weights = torch.tensor([sum(row) for row in seen], dtype=torch.float64).exp()
    close(statistics["sampler_kl"], torch.tensor(-sum(map(sum, seen)), dtype=torch.float64))
    close(statistics["weight"], weights.sum())
    close(statistics["squared_weight"], weights.square().sum())
    assert statistics["max_mismatch"] == max(abs(value) for row in seen for value in row)


def test_statistics_of_a_step_are_means_of_its_first_update_but_for_the_clip():
    first, second = UpdateStatistics(), UpdateStatistics()
    names = ("entropy", "clipped", "loss", "sampler_kl", "weight", "squared_weight", "kl")
    first.sums = dict(zip(names, torch.tensor([4.0, 0.0, 2.0, 1.0, 4.0, 8.0, 6.0]), strict=True))
    second.sums = dict.fromkeys(names, torch.tensor(3.0))
    first.completions, first.max_mismatch = 4, torch.tensor(0.5)
    assert step_statistics([first, second], grad_norm=torch.tensor(7.0)) == {
        "entropy": 1.0,
        "clipped": 1.5 / 4,
        "kl": 1.5,
        "loss": 0.5,
        "grad_norm": 7.0,
        "max_logprob_mismatch": 0.5,
        "sampler_kl": 0.25,
        "effective_sample_share": pytest.approx(16 / (8 * 4)),
    }
