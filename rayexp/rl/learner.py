"""Learners: a policy, and its update from one set of rollouts. GRPO's learner also has a frozen reference.

A policy may be sharded over ranks. Every rank gets all rollouts of a step and learns from its share of them. All ranks
make the same calls in the same order, so that an error that ends a step ends it on all of them.

Shape suffixes: _N completions, _P prompts, _G members of a group, _C completion tokens, _V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rayexp.errors import NotFiniteError, PermanentError
from rayexp.formatting import number
from rayexp.models import devices
from rayexp.objectives.advantages import Earnings, advantages_of
from rayexp.objectives.losses import GRPOSettings, Scores, earnings_of, grpo_loss
from rayexp.objectives.reductions import masked
from rayexp.rl.critic import Critic, ValueTargets, critic_statistics
from rayexp.rl.readout import Readout, fits, token_scores
from rayexp.rl.rollouts import RolloutBatch, on_device, own_share
from rayexp.rl.scoring import UniquePrefixes
from rayexp.rl.statistics import UpdateStatistics, step_statistics
from rayexp.stages import GRPO, RolloutStage
from rayexp.training.context import ALONE, Ranks
from rayexp.training.parallel import duplicate, is_spread
from rayexp.training.trainer import Trainer

#: Prefix of the critic's names in a learner's state.
CRITIC = "critic."


class MismatchError(PermanentError):
    """Completions were not drawn from the policy that is about to learn from them."""


@dataclass(frozen=True)
class _Part:
    """A micro-batch on the device, with the values that all updates from it share."""

    batch: RolloutBatch[Tensor]
    prefixes: UniquePrefixes
    whole: bool  # whether all distributions of the step are held at once
    reference: Readout | None  # None if kl_beta is 0, or if each update reads it again
    old_logprob_NC: Tensor | None  # denominator of the ratios; None: that of the policy itself
    values_NC: Tensor | None  # the critic's values before the first update; None without a critic
    old_kl_NC: Tensor | None = None  # KL that is charged to the reward (kl_in='reward'); None: the policy's own


class Learner(ABC):
    """The policy of a stage, and its optimiser. It trains ``model`` in place."""

    def __init__(
        self, stage: RolloutStage, model: PreTrainedModel, updates_per_step: int, ranks: Ranks = ALONE
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.trainer = Trainer(model, stage.optimiser, stage.steps * updates_per_step)
        self._updates_per_step = updates_per_step

    @property
    def completed(self) -> int:
        """Steps of the stage that are done."""
        return self.trainer.completed_steps // self._updates_per_step

    @abstractmethod
    def update(self, batches: list[RolloutBatch[np.ndarray]], max_logprob_mismatch: float) -> dict[str, float]:
        """Take one step of the stage on a set of rollouts. Return its statistics, by the names of the stage's metrics.

        Raises MismatchError if the log-probabilities of sampler and learner for a token differ by more than the limit,
        in nats. Raises NotFiniteError, with the prompts at fault, if a number is not finite. The weights are untouched
        then.
        """

    @torch.no_grad()
    def weights(self, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Return a copy of the policy's weights, by transformers' names, in fp32 on the CPU. names: of the weights to
        return; by default all. All ranks have to call this; only rank 0 gets weights."""
        found = {}
        for name, tensor in self.model.state_dict().items():
            if names is None or name in names:
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if self.ranks.rank == 0:
                    found[name] = whole.cpu().numpy().copy()
        return found

    def state(self) -> dict[str, Tensor]:
        """Return all that a continued stage needs, by name; see ``Trainer.state``."""
        return self.trainer.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state`` as if nothing had happened."""
        self.trainer.restore(state)


class GRPOLearner(Learner):
    """The learner of GRPO."""

    def __init__(
        self, stage: GRPO, model: PreTrainedModel, reference: PreTrainedModel | None = None, *, ranks: Ranks = ALONE
    ) -> None:
        """reference: the model of ``stage.reference_stage``; None if that is the policy at the start."""
        super().__init__(stage, model, stage.updates, ranks)
        # The reference runs without gradients, but its parameters keep ``requires_grad``: without it torch picks other
        # kernels, and a policy that equals its reference would seem to differ from it by rounding.
        if stage.kl_beta == 0:
            self.reference = None
        else:
            self.reference = duplicate(model, stage.optimiser.precision) if reference is None else reference
        steps = stage.steps * stage.updates
        self.critic = Critic(model, stage.optimiser, steps, ranks) if stage.has_critic else None
        self._stage = stage
        self._settings = GRPOSettings(**{field.name: getattr(stage, field.name) for field in fields(GRPOSettings)})

    def update(self, batches: list[RolloutBatch[np.ndarray]], max_logprob_mismatch: float) -> dict[str, float]:
        """Take ``updates`` optimiser steps, each with a step of the critic, if there is one.

        The critic learns from the returns that the advantages of the same update were computed from. With staleness no
        mismatch is raised, because the completions were drawn with other weights.
        """
        require_finite_rollouts(batches)
        self._sequences = sum(len(batch.tokens_NC) for batch in batches)
        held = fits(self.model, sum(batch.tokens_NC.size for batch in batches))
        parts = [self._part(batch, held) for batch in own_share(batches, self.ranks)]
        if self._stage.updates > 1:
            parts = [self._with_old_policy(part) for part in parts]
        updates = [UpdateStatistics() for _ in range(self._stage.updates)]
        check = partial(self._require_match, updates[0], max_logprob_mismatch)
        steps = [self._step(parts, statistics, check) for statistics in updates]
        norm, earned = steps[0]
        of_all = [each.of_all(self.ranks) for each in updates]
        return step_statistics(of_all, norm) | self._critic_statistics(parts, earned)

    def state(self) -> dict[str, Tensor]:
        """See ``Learner.state``."""
        of_critic = {} if self.critic is None else self.critic.state()
        return super().state() | {f"{CRITIC}{name}": tensor for name, tensor in of_critic.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See ``Learner.restore``."""
        super().restore(state)
        if self.critic is not None:
            self.critic.restore({n.removeprefix(CRITIC): t for n, t in state.items() if n.startswith(CRITIC)})

    def _part(self, batch: RolloutBatch[np.ndarray], held: bool) -> _Part:
        """Move a batch to the device, with the values that all updates from it share.

        held: whether all distributions of the step fit in memory. A sharded decoder gathers its weights only in its own
        forward pass, so its distributions can't be computed a few prefixes at a time; they are held for one batch at a
        time.
        """
        prefixes = UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC, self.trainer.device)
        whole = held or is_spread(self.model)
        reference = self._read_reference(prefixes, whole) if held or not whole else None
        tensors = on_device(batch, self.trainer.device)
        old_logprob_NC = tensors.sampler_logprobs_NC if self._stage.staleness else None
        # Values before all updates: once the critic has learnt from these completions, its values depend on them.
        values_NC = None if self.critic is None else self.critic.values(prefixes)
        return _Part(tensors, prefixes, whole, reference, old_logprob_NC, values_NC)

    @torch.no_grad()
    def _read_reference(self, prefixes: UniquePrefixes, whole: bool) -> Readout | None:
        if self.reference is None:
            return None
        with devices.autocast(self.reference, self._stage.optimiser.precision):
            return Readout.of(self.reference, prefixes, whole, self._stage.temperature)

    @torch.no_grad()
    def _with_old_policy(self, part: _Part) -> _Part:
        """Store the policy's log-probabilities and KL before the first of several updates. The ratios of stale rollouts
        keep referring to the policy that drew them."""
        scores = self._scores(part)
        old_logprob_NC = scores.logprob_NC if part.old_logprob_NC is None else part.old_logprob_NC
        return replace(part, old_logprob_NC=old_logprob_NC, old_kl_NC=scores.kl_NC)

    def _scores(self, part: _Part) -> Scores:
        batch, estimator = part.batch, self._settings.kl_estimator
        reference = part.reference or self._read_reference(part.prefixes, part.whole)
        with self.trainer.precision():
            policy = Readout.of(self.model, part.prefixes, part.whole, self._stage.temperature)
            return token_scores(policy, reference, part.prefixes, batch.tokens_NC, batch.mask_NC, estimator)

    def _step(
        self, parts: list[_Part], statistics: UpdateStatistics, check: Callable[[], None]
    ) -> tuple[Tensor, list[Earnings]]:
        """Take one optimiser step. Return the gradient's norm before clipping, and the rewards of each
        micro-batch."""
        earned: list[Earnings] = []

        def before_the_policy_moves() -> None:
            """Let the critic take its step here, because nothing can fail after it: either both move, or neither."""
            check()
            if self.critic is not None:
                self.critic.step(_value_targets(parts, earned))

        losses = (partial(self._loss, part, statistics, earned) for part in parts)
        try:
            return self.trainer.step(losses, before_the_policy_moves), earned
        except NotFiniteError as error:
            self._name_culprits(parts)
            own = [number for part in parts for number in part.batch.numbers_P.tolist()]
            prompts = [number for numbers in self.ranks.gather(own) for number in numbers]
            finite = f"log-probabilities and KLs of its prompts, {min(prompts)} to {max(prompts)}, are finite"
            raise NotFiniteError(f"{error} ({finite}); {self.trainer.remedy}") from error

    def _loss(self, part: _Part, statistics: UpdateStatistics, earned: list[Earnings]) -> Tensor:
        """Return what these completions add to the mean loss over the step, times the number of ranks, because
        gradients are averaged over ranks."""
        batch, scores, settings = part.batch, self._scores(part), self._settings
        earned.append(earnings_of(scores, batch.mask_NC, batch.rewards_PG, settings, part.old_kl_NC))
        advantages = advantages_of(settings.advantage, earned[-1], part.values_NC)
        loss = grpo_loss(scores, batch.mask_NC, advantages, settings, part.old_logprob_NC)
        statistics.add(batch, scores, loss)
        return loss.mean(self._sequences) * self.ranks.ranks

    def _critic_statistics(self, parts: list[_Part], earned: list[Earnings]) -> dict[str, float]:
        if self.critic is None:
            return {}
        own = [
            (part.values_NC.cpu(), each.returns_NC().cpu(), each.mask_NC.cpu())
            for part, each in zip(parts, earned, strict=True)
            if part.values_NC is not None
        ]
        return critic_statistics([seen for of_rank in self.ranks.gather(own) for seen in of_rank])

    def _require_match(self, first: UpdateStatistics, limit: float) -> None:
        if not self._stage.staleness:
            require_match(max(self.ranks.gather(first.max_mismatch.item())), limit)

    @torch.no_grad()
    def _name_culprits(self, parts: list[_Part]) -> None:
        """Raise NotFiniteError for the prompts whose completions have a log-probability or KL that is not finite."""
        for part in parts:
            scores, numbers_P = self._scores(part), part.batch.numbers_P.cpu().numpy()
            for what, values_NC in {"log-probability": scores.logprob_NC, "KL to the reference": scores.kl_NC}.items():
                if values_NC is not None:
                    seen_NC = masked(values_NC, part.batch.mask_NC).cpu().numpy()
                    require_finite(f"the policy's {what}", seen_NC, numbers_P, self.ranks)


def _value_targets(parts: Sequence[_Part], earned: Sequence[Earnings]) -> list[ValueTargets]:
    """Return the targets of the critic for each micro-batch."""
    return [
        ValueTargets(part.prefixes, earnings.returns_NC(), earnings.mask_NC)
        for part, earnings in zip(parts, earned, strict=True)
    ]


def require_finite_rollouts(batches: Sequence[RolloutBatch[np.ndarray]]) -> None:
    """Raise NotFiniteError for the prompts with a reward or a sampler's log-probability that is not finite."""
    for batch in batches:
        require_finite("the reward", batch.rewards_PG, batch.numbers_P)
        require_finite("the sampler's log-probability", batch.sampler_logprobs_NC, batch.numbers_P)


def require_match(mismatch: float, limit: float) -> None:
    """Raise MismatchError if a token's log-probability differs between sampler and learner by more than the limit."""
    if not mismatch <= limit:
        raise MismatchError(
            f"sampler and learner differ by {mismatch:.3g} nats on a sampled token, more than "
            f"max_logprob_mismatch={number(limit)}; raise that if it is rounding, or use sampler='torch'"
        )


def require_finite(what: str, values: np.ndarray, numbers_P: np.ndarray, ranks: Ranks = ALONE) -> None:
    """Raise NotFiniteError for the prompts with a value that is not finite, on any rank. The first axis of ``values``
    is prompts, or their completions with a group's members side by side."""
    prompts = len(numbers_P)
    bad_P = ~np.isfinite(values).reshape(prompts, values.size // max(1, prompts)).all(axis=1)
    bad = [number for of_rank in ranks.gather(numbers_P[bad_P].tolist()) for number in of_rank]
    if bad:
        raise NotFiniteError(f"{what} is not finite for prompt {', '.join(map(str, bad))}")
