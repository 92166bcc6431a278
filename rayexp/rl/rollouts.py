"""Rollouts on their way from the sampler to the loss: as arrays of the host, and as tensors of the learner's device.

Shape suffixes: _N completions (prompts times group, a group's members side by side), _P prompts, _G members of a group,
_T tokens, _C completion tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from rayexp.rl.prompts import PromptBatch
from rayexp.sampling.base import Completions
from rayexp.training.context import Ranks

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class RolloutBatch(Generic[Array]):
    """Groups of completions whose prompts are of one length.

    Completions are padded on the right and masked in the loss. Causal attention never looks at the padding. So
    completions of all lengths fit into one batch.
    """

    numbers_P: Array  # which of the stage's prompts they are
    prompts_PT: Array  # int64, with their hints
    tokens_NC: Array  # int64
    mask_NC: Array  # float32, 1 on the completion, <eos> included
    sampler_logprobs_NC: Array  # float32
    rewards_PG: Array  # float32

    def shard(self, rank: int, ranks: int) -> "RolloutBatch[Array]":
        """Return the consecutive groups that belong to one rank; some ranks get none if there are fewer groups than
        ranks."""
        prompts, group = self.rewards_PG.shape
        first, last = prompts * rank // ranks, prompts * (rank + 1) // ranks
        rows_N, rows_P = slice(first * group, last * group), slice(first, last)
        return RolloutBatch(
            self.numbers_P[rows_P],
            self.prompts_PT[rows_P],
            self.tokens_NC[rows_N],
            self.mask_NC[rows_N],
            self.sampler_logprobs_NC[rows_N],
            self.rewards_PG[rows_P],
        )


def own_share(batches: Sequence[RolloutBatch[np.ndarray]], ranks: Ranks) -> list[RolloutBatch[np.ndarray]]:
    """Return this rank's groups of each batch. Every rank gets equally many batches, some of them maybe empty, because
    all ranks run a sharded decoder together. The rank with one group more is another one in the next batch."""
    return [batch.shard((ranks.rank + i) % ranks.ranks, ranks.ranks) for i, batch in enumerate(batches)]


def rollout_batches(
    prompts: PromptBatch,
    completions: Completions,
    rewards_PG: np.ndarray,
    tokens: int | None = None,
    learnt_N: np.ndarray | None = None,
) -> list[RolloutBatch[np.ndarray]]:
    """Split rollouts into batches of one prompt length each, shortest first. A hint counts as part of its prompt, so
    that only drawn tokens are learnt from.

    tokens: most tokens of a batch, padding and a prompt for each completion included; a group is never split. learnt_N:
    which completions are learnt from; by default all.
    """
    group, contexts = rewards_PG.shape[1], prompts.contexts
    lengths_P = np.array([len(context) for context in contexts])
    mask_NC = completions.mask_NC if learnt_N is None else completions.mask_NC * learnt_N[:, None]
    batches = []
    for length in np.unique(lengths_P):
        of_length_P = np.flatnonzero(lengths_P == length)
        longest = length + int(completions.length_N.reshape(-1, group)[of_length_P].max())
        at_once = len(of_length_P) if tokens is None else max(1, tokens // (group * int(longest)))
        for chosen_P in np.split(of_length_P, range(at_once, len(of_length_P), at_once)):
            rows_N = (chosen_P[:, None] * group + np.arange(group)).ravel()
            width = int(completions.length_N[rows_N].max())
            batches.append(
                RolloutBatch(
                    numbers_P=np.array([prompts.numbers[i] for i in chosen_P]),
                    prompts_PT=np.array([contexts[i] for i in chosen_P], dtype=np.int64),
                    tokens_NC=completions.tokens_NC[rows_N, :width],
                    mask_NC=mask_NC[rows_N, :width],
                    sampler_logprobs_NC=completions.logprobs_NC[rows_N, :width],
                    rewards_PG=rewards_PG[chosen_P].astype(np.float32),
                )
            )
    return batches


def on_device(batch: RolloutBatch[np.ndarray], device: torch.device) -> RolloutBatch[Tensor]:
    """Return a copy of the batch as tensors of the device."""
    return RolloutBatch(
        **{field.name: torch.tensor(getattr(batch, field.name), device=device) for field in fields(batch)}
    )
