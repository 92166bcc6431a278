"""The GRPO learner: a policy, its frozen reference, and the update from one batch of rollouts.

Shape suffixes: _N completions, _P prompts, _G members of a group, _T tokens, _C completion tokens, _V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from rayexp.errors import NotFiniteError, PermanentError
from rayexp.models import decoder
from rayexp.rl import objectives
from rayexp.rl.objectives import GRPOSettings, Rollouts
from rayexp.rl.scoring import UniquePrefixes, group_logprobs
from rayexp.sampling.base import Completions
from rayexp.spec import GRPO, number
from rayexp.training.trainer import Trainer


class MismatchError(PermanentError):
    """Completions were not drawn from the policy that is about to learn from them."""


@dataclass(frozen=True)
class RolloutBatch:
    """Groups of completions whose prompts are of one length. numbers_P: which of the stage's prompts they are.

    Completions are padded on the right, which causal attention never looks at, and masked in the loss: one rectangle
    instead of one for each length that an ``<eos>`` made.
    """

    numbers_P: np.ndarray
    prompts_PT: np.ndarray
    tokens_NC: np.ndarray
    mask_NC: np.ndarray
    sampler_logprobs_NC: np.ndarray
    rewards_PG: np.ndarray


@dataclass
class _Part:
    """A batch on the device: what the decoder reads, the samples' own log-probabilities, and what the loss reads."""

    prefixes: UniquePrefixes
    sampler_logprobs_NC: Tensor
    rollouts: Rollouts


class PolicyLearner:
    """Trains ``model`` itself, which is the policy. The reference is a frozen copy of what it was at the start."""

    def __init__(self, spec: GRPO, model: LlamaForCausalLM) -> None:
        self.model = model
        # Only ever run without gradients. Its parameters would still have them: torch picks other kernels where they do
        # not, and a policy that equals its reference would seem to differ from it by rounding.
        self.reference = copy.deepcopy(model) if spec.kl_beta > 0 else None
        self.trainer = Trainer(model, spec.optimiser, spec.steps * spec.updates)
        self._spec = spec
        self._settings = GRPOSettings(
            spec.kl_beta, spec.kl_estimator, spec.kl_in, spec.advantage, spec.loss_reduction, spec.clip_ratio
        )

    def weights(self) -> dict[str, np.ndarray]:
        """The policy's weights under transformers' names, fp32, on the CPU; a copy that later steps leave alone."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}

    def update(self, batches: list[RolloutBatch], max_logprob_mismatch: float) -> dict[str, float]:
        """Take ``spec.updates`` optimiser steps on one set of rollouts. Return statistics of the first; of ``clipped``
        the mean over all of them, because the first starts at a ratio of 1.

        Raises MismatchError when the sampler's log-probability of a token differs from the learner's by more than the
        limit, in nats (not with staleness, where they are of different weights), and NotFiniteError, with the prompts
        at fault, on a number that is none; the weights are untouched then.
        """
        for batch in batches:
            _require_finite("the reward", batch.rewards_PG, batch.numbers_P)
            _require_finite("the sampler's log-probability", batch.sampler_logprobs_NC, batch.numbers_P)
        parts = [self._part(batch) for batch in batches]
        sequences = sum(len(part.rollouts.tokens_NC) for part in parts)
        totals: dict[str, Tensor] = {}
        clipped = torch.zeros((), device=self.trainer.device)
        if self._spec.updates > 1:
            parts = [self._with_old_policy(part) for part in parts]
        norm = torch.zeros(())
        for update in range(self._spec.updates):
            seen = totals if update == 0 else {}
            try:
                step_norm = self.trainer.step(
                    (partial(self._loss, part, sequences, seen) for part in parts),
                    check=lambda: self._require_match(totals["_max_mismatch"].item(), max_logprob_mismatch),
                )
            except NotFiniteError as error:
                self._name_culprits(batches, parts)
                prompts = ", ".join(str(number) for batch in batches for number in batch.numbers_P)
                raise NotFiniteError(f"{error} (no single prompt of {prompts} is at fault)") from error
            norm = step_norm if update == 0 else norm
            clipped += seen["clipped"]
        totals["clipped"] = clipped / self._spec.updates
        statistics = {name: value.item() / sequences for name, value in totals.items() if not name.startswith("_")}
        weight, square, count = (totals[name].item() for name in ("_weight", "_square", "_count"))
        return statistics | {
            "grad_norm": norm.item(),
            "max_logprob_mismatch": totals["_max_mismatch"].item(),
            "sampler_kl": totals["_sampler_kl"].item() / count,
            "effective_sample_share": weight * weight / (square * count),
        }

    def _require_match(self, mismatch: float, limit: float) -> None:
        if not self._spec.staleness and not mismatch <= limit:
            raise MismatchError(
                f"sampler and learner differ by {mismatch:.3g} nats on a sampled token; "
                f"allowed: max_logprob_mismatch = {number(limit)}"
            )

    @torch.no_grad()
    def _name_culprits(self, batches: list[RolloutBatch], parts: list[_Part]) -> None:
        """Raise NotFiniteError for the prompts of whose completions some log-probability is not finite."""
        for batch, part in zip(batches, parts, strict=True):
            with self.trainer.precision():
                policy_NCV = group_logprobs(self.model, part.prefixes)
            found = {"policy": policy_NCV, "reference": part.rollouts.reference_NCV}
            for whose, logprobs_NCV in found.items():
                if logprobs_NCV is not None:
                    seen_NCV = objectives.masked(logprobs_NCV, part.rollouts.mask_NC[..., None])
                    _require_finite(f"the {whose}'s log-probability", seen_NCV.cpu().numpy(), batch.numbers_P)

    def _part(self, batch: RolloutBatch) -> _Part:
        device = self.trainer.device
        prefixes = UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC, device)
        reference_NCV = None
        if self.reference is not None:
            with torch.no_grad(), decoder.autocast(self.reference, self._spec.optimiser.precision):
                reference_NCV = group_logprobs(self.reference, prefixes)
        drawn_with_NC = torch.tensor(batch.sampler_logprobs_NC, device=device)
        return _Part(
            prefixes,
            drawn_with_NC,
            Rollouts(
                torch.tensor(batch.tokens_NC, device=device),
                torch.tensor(batch.mask_NC, device=device),
                torch.tensor(batch.rewards_PG, device=device),
                reference_NCV,
                old_logprobs_NC=drawn_with_NC if self._spec.staleness else None,
            ),
        )

    @torch.no_grad()
    def _with_old_policy(self, part: _Part) -> _Part:
        """Fix what the ratios (but stale ones) and the KL in the reward refer to, before the first of the updates."""
        rollouts = part.rollouts
        with self.trainer.precision():
            policy_NCV = group_logprobs(self.model, part.prefixes)
        old_NC = rollouts.old_logprobs_NC
        if old_NC is None:
            old_NC = policy_NCV.gather(-1, rollouts.tokens_NC[..., None]).squeeze(-1)
        old_kl_N = None
        if rollouts.reference_NCV is not None:
            kl_NC = objectives.kl_to_reference(
                policy_NCV,
                rollouts.reference_NCV,
                rollouts.tokens_NC,
                rollouts.mask_NC,
                self._settings.kl_estimator,
            )
            old_kl_N = kl_NC.sum(dim=1)
        part.rollouts = replace(rollouts, old_logprobs_NC=old_NC, old_kl_N=old_kl_N)
        return part

    def _loss(self, part: _Part, sequences: int, totals: dict[str, Tensor]) -> Tensor:
        rollouts = part.rollouts
        with self.trainer.precision():
            policy_NCV = group_logprobs(self.model, part.prefixes)
        loss, statistics = objectives.grpo_loss(policy_NCV, rollouts, self._settings)
        with torch.no_grad():
            logprobs_NC = policy_NCV.gather(-1, rollouts.tokens_NC[..., None]).squeeze(-1)
            difference_NC = objectives.masked(logprobs_NC - part.sampler_logprobs_NC, rollouts.mask_NC)
            ratio_N = difference_NC.sum(dim=1).exp()
            statistics |= {
                "loss": loss.detach(),
                "_weight": ratio_N.sum(),
                "_square": ratio_N.square().sum(),
                "_count": torch.tensor(float(len(ratio_N))),
                "_sampler_kl": -difference_NC.sum(),
            }
            largest = difference_NC.abs().max()
            totals["_max_mismatch"] = torch.maximum(totals.get("_max_mismatch", largest), largest)
            for name, value in statistics.items():
                totals[name] = totals[name] + value if name in totals else value
        return loss / sequences


def _require_finite(what: str, values: np.ndarray, numbers_P: np.ndarray) -> None:
    """``values`` belong to prompts, or to groups of completions of prompts, along their first axis."""
    bad_P = ~np.isfinite(values).reshape(len(numbers_P), -1).all(axis=1)
    if bad_P.any():
        raise NotFiniteError(f"{what} is not finite for prompt {', '.join(str(n) for n in numbers_P[bad_P])}")


def rollout_batches(
    numbers: Sequence[int], prompts: Sequence[Sequence[int]], completions: Completions, rewards_PG: np.ndarray
) -> list[RolloutBatch]:
    """Cut rollouts of prompts in any order into batches of one prompt length each, shortest first."""
    group = rewards_PG.shape[1]
    lengths_P = np.array([len(prompt) for prompt in prompts])
    mask_NC = completions.mask_NC
    batches = []
    for length in np.unique(lengths_P):
        chosen_P = np.flatnonzero(lengths_P == length)
        rows_N = (chosen_P[:, None] * group + np.arange(group)).ravel()
        width = int(completions.length_N[rows_N].max())
        batches.append(
            RolloutBatch(
                np.array([numbers[i] for i in chosen_P]),
                np.array([prompts[i] for i in chosen_P]),
                completions.tokens_NC[rows_N, :width],
                mask_NC[rows_N, :width],
                completions.logprobs_NC[rows_N, :width],
                rewards_PG[chosen_P].astype(np.float32),
            )
        )
    return batches
