"""The runner of rejection-sampling fine-tuning: the rollout loop with a learner that imitates right completions.

Shape suffixes: _N completions, _P prompts, _G members of a group, _C completion tokens.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayexp import rng
from rayexp.objectives.reductions import masked
from rayexp.rl.learner import Learner as BaseLearner
from rayexp.rl.learner import require_finite, require_finite_rollouts, require_match
from rayexp.rl.readout import Readout, fits, token_scores
from rayexp.rl.rollouts import RolloutBatch, on_device, own_share
from rayexp.rl.scoring import UniquePrefixes
from rayexp.stages import RFT
from rayexp.training.context import ALONE, Ranks
from rayexp.training.parallel import is_spread, total


class Learner(BaseLearner):
    """The learner of RFT: next-token loss on the right completions of a round, from the weights of the round before."""

    def __init__(self, stage: RFT, model: PreTrainedModel, *, ranks: Ranks = ALONE) -> None:
        super().__init__(stage, model, stage.updates, ranks)
        self._stage = stage

    def update(self, batches: list[RolloutBatch[np.ndarray]], max_logprob_mismatch: float) -> dict[str, float]:
        """Take ``updates`` optimiser steps on the right completions of a round; none if no completion is right."""
        require_finite_rollouts(batches)
        mismatch = max(self._mismatch(batch) for batch in own_share(batches, self.ranks))
        require_match(mismatch, max_logprob_mismatch)
        kept = [right_completions(batch) for batch in batches]
        solved = np.concatenate([(batch.rewards_PG > 0).any(axis=1) for batch in batches])
        counts = [len(batch.tokens_NC) for batch in kept]
        if any(counts):
            order = rng.stream_key(self._stage.seed, "rft order", self.completed)
            steps = [self._step(kept, counts, order, update) for update in range(self._stage.updates)]
            means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        else:
            self.trainer.skip(self._stage.updates)
            means = {}
        return means | {
            "kept": float(sum(counts)),
            "solved_prompts": float(solved.mean()),
            "max_logprob_mismatch": mismatch,
        }

    @torch.no_grad()
    def _mismatch(self, batch: RolloutBatch[np.ndarray]) -> float:
        """Return the largest difference of sampler and learner in a token's log-probability, in nats, over the shares
        of all ranks."""
        tensors = on_device(batch, self.trainer.device)
        logprobs_NC = masked(self._logprobs(tensors, batch, self._stage.temperature), tensors.mask_NC)
        require_finite("the policy's log-probability", logprobs_NC.cpu().numpy(), batch.numbers_P, self.ranks)
        difference_NC = masked(logprobs_NC - tensors.sampler_logprobs_NC, tensors.mask_NC).abs()
        return max(self.ranks.gather(difference_NC.max().item() if len(difference_NC) else 0.0))

    def _step(
        self, kept: Sequence[RolloutBatch[np.ndarray]], counts: Sequence[int], order: int, update: int
    ) -> dict[str, float]:
        """Take one optimiser step on the next ``batch_samples`` of the kept completions, in epochs of a fresh order."""
        size = self._stage.batch_samples
        chosen = rng.epochs(order, sum(counts), update * size, (update + 1) * size)
        bounds = np.cumsum([0, *counts])
        shares = [
            _rows(batch, np.sort(chosen[(chosen >= low) & (chosen < high)]) - low)
            for batch, low, high in zip(kept, bounds[:-1], bounds[1:], strict=True)
        ]
        shares = [share for share in shares if len(share.tokens_NC)]
        tokens = sum(float(share.mask_NC.sum()) for share in shares)
        losses: list[Tensor] = []
        own = own_share(shares, self.ranks)
        norm = self.trainer.step([partial(self._loss, share, tokens, losses) for share in own])
        return {"loss": total(torch.stack(losses).sum(), self.ranks).item(), "grad_norm": norm.item()}

    def _loss(self, batch: RolloutBatch[np.ndarray], tokens: float, losses: list[Tensor]) -> Tensor:
        """Return what this batch adds to the mean negative log-likelihood of ``tokens`` tokens, times the number of
        ranks, because gradients are averaged over ranks."""
        tensors = on_device(batch, self.trainer.device)
        loss = -masked(self._logprobs(tensors, batch), tensors.mask_NC).sum() / tokens
        losses.append(loss.detach())
        return loss * self.ranks.ranks

    def _logprobs(
        self, tensors: RolloutBatch[Tensor], batch: RolloutBatch[np.ndarray], temperature: float = 1.0
    ) -> Tensor:
        """Return the log-probability of every token under the policy: [N, C]."""
        prefixes = UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC, self.trainer.device)
        with self.trainer.precision():
            whole = is_spread(self.model) or fits(self.model, batch.tokens_NC.size)
            policy = Readout.of(self.model, prefixes, whole, temperature)
            return token_scores(policy, None, prefixes, tensors.tokens_NC, tensors.mask_NC, "exact").logprob_NC


def right_completions(batch: RolloutBatch[np.ndarray]) -> RolloutBatch[np.ndarray]:
    """Return the completions with a reward above 0, each distinct one once for its prompt, as groups of one."""
    group = batch.rewards_PG.shape[1]
    prompt_N = np.repeat(np.arange(len(batch.numbers_P)), group)
    right_N = np.flatnonzero(batch.rewards_PG.reshape(-1) > 0)
    keys_NK = np.concatenate([prompt_N[right_N, None], batch.tokens_NC[right_N]], axis=1)
    _, first = np.unique(keys_NK, axis=0, return_index=True)
    row_N = right_N[np.sort(first)]
    return RolloutBatch(
        numbers_P=batch.numbers_P[prompt_N[row_N]],
        prompts_PT=batch.prompts_PT[prompt_N[row_N]],
        tokens_NC=batch.tokens_NC[row_N],
        mask_NC=batch.mask_NC[row_N],
        sampler_logprobs_NC=batch.sampler_logprobs_NC[row_N],
        rewards_PG=batch.rewards_PG.reshape(-1, 1)[row_N],
    )


def _rows(batch: RolloutBatch[np.ndarray], row_N: np.ndarray) -> RolloutBatch[np.ndarray]:
    """Return some rows of a batch of groups of one."""
    return RolloutBatch(**{name: array_N[row_N] for name, array_N in vars(batch).items()})
