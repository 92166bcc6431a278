"""The statistics of an update, by hand on completions of a tiny policy."""

import torch

from rayexp.objectives.kl import kl_to_reference
from rayexp.objectives.reductions import sequence_mean
from tests.fixtures.tiny_policy import (
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
