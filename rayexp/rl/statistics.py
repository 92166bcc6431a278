"""The statistics of a GRPO step.

Shape suffixes: _N completions, _C completion tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rayexp.objectives.losses import Loss, Scores
from rayexp.objectives.reductions import masked, sequence_mean
from rayexp.rl.rollouts import RolloutBatch
from rayexp.training.context import Ranks


class UpdateStatistics:
    """Sums over the completions of one update, which stay on the device until they are read."""

    def __init__(self) -> None:
        self.completions = 0
        self.sums: dict[str, Tensor] = {}
        self.max_mismatch = torch.zeros(())  # nats, between sampler and learner on a sampled token

    @torch.no_grad()
    def add(self, batch: RolloutBatch[Tensor], scores: Scores, loss: Loss) -> None:
        """Add the completions of a batch."""
        mask_NC = batch.mask_NC
        difference_NC = masked(scores.logprob_NC - batch.sampler_logprobs_NC, mask_NC)
        weight_N = difference_NC.sum(dim=1).exp()
        sums = {
            "entropy": sequence_mean(scores.entropy_NC, mask_NC).sum(),
            "clipped": sequence_mean(loss.clipped_NC.float(), mask_NC).sum(),
            "loss": loss.loss_N.detach().sum(),
            "sampler_kl": -difference_NC.sum(),
            "weight": weight_N.sum(),
            "squared_weight": weight_N.square().sum(),
        }
        if scores.kl_NC is not None:
            sums["kl"] = scores.kl_NC.sum(dim=1).sum()
        if loss.penalty_N is not None:
            sums["kl_penalty"] = loss.penalty_N.sum()
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in sums.items()}
        if len(mask_NC):
            self.max_mismatch = torch.maximum(self.max_mismatch.to(mask_NC.device), difference_NC.abs().max())
        self.completions += len(mask_NC)

    def of_all(self, ranks: Ranks) -> "UpdateStatistics":
        """Return the statistics of all ranks' completions, on the host."""
        together = UpdateStatistics()
        for completions, sums, mismatch in ranks.gather(
            (self.completions, on_host(self.sums), self.max_mismatch.cpu())
        ):
            together.completions += completions
            together.sums = {name: together.sums.get(name, 0.0) + value for name, value in sums.items()}
            together.max_mismatch = torch.maximum(together.max_mismatch, mismatch)
        return together


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the host, so that they can be sent to other ranks."""
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def step_statistics(updates: Sequence[UpdateStatistics], grad_norm: Tensor) -> dict[str, float]:
    """Return the statistics of a step's first update, by the names in ``rayexp.telemetry.metrics``.

    ``clipped`` is the mean over all updates, because the first starts at a ratio of 1. ``effective_sample_share`` is
    (sum w)^2 / (N sum w^2), with w_N the probability of a completion under the learner over that under the sampler.
    """
    first = updates[0]
    clipped = sum((update.sums["clipped"] for update in updates), torch.zeros(())) / len(updates)
    sums = {name: value.item() for name, value in (first.sums | {"clipped": clipped}).items()}
    of_completions = ("entropy", "clipped", "kl", "kl_penalty", "loss")
    means = {name: sums[name] / first.completions for name in of_completions if name in sums}
    weight = sums["weight"]
    return means | {
        "grad_norm": grad_norm.item(),
        "max_logprob_mismatch": first.max_mismatch.item(),
        "sampler_kl": sums["sampler_kl"] / first.completions,
        "effective_sample_share": weight * weight / (sums["squared_weight"] * first.completions),
    }
