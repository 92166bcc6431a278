"""The critic: a second network, which predicts the returns of a policy's completions.

It starts with the policy's weights and a head for one number, whose weights are 0, so that it predicts 0 at first. It
lives as long as its stage; the next stage starts a new one.

Its optimiser has all settings of the policy's, the learning rate included. A faster critic was no better. This was
measured on tiny decoders that started at a mean reward of 0.05 and of 0.85, with a critic at 1, 3 and 10 times the
policy's rate. Over any 10 of 60 steps it explained at most 0.01, 0.02 and 0.01 of the variance of returns; at 3 and 10
times the rate that share was also negative (-0.1, -0.2). At the same rate the final reward was as high or higher.
In so few steps a critic is hardly more than a moving mean of the reward.

Shape suffixes: _N completions, _C completion tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayexp.errors import NotFiniteError
from rayexp.models.values import with_value_head
from rayexp.objectives.reductions import masked
from rayexp.rl.scoring import UniquePrefixes, group_logits
from rayexp.stages import AdamW
from rayexp.training.context import ALONE, Ranks
from rayexp.training.parallel import duplicate, total
from rayexp.training.trainer import Trainer


@dataclass(frozen=True)
class ValueTargets:
    """A critic's training data: the returns of completions, and the prefixes that they followed."""

    prefixes: UniquePrefixes
    returns_NC: Tensor
    mask_NC: Tensor


class Critic:
    """A value function and its optimiser."""

    def __init__(self, policy: PreTrainedModel, optimiser: AdamW, steps: int, ranks: Ranks = ALONE) -> None:
        self.model = duplicate(policy, optimiser.precision, with_value_head)
        self.trainer = Trainer(self.model, optimiser, steps)
        self._ranks = ranks

    @torch.no_grad()
    def values(self, prefixes: UniquePrefixes) -> Tensor:
        """Return the value before each token of groups of completions: [N, C], fp32."""
        return self._values(prefixes)

    def _values(self, prefixes: UniquePrefixes) -> Tensor:
        with self.trainer.precision():
            logits_UC1 = group_logits(self.model, prefixes)
        return logits_UC1.float().squeeze(-1).index_select(0, prefixes.row_N)

    def step(self, targets: Sequence[ValueTargets]) -> None:
        """Take one optimiser step on the mean squared error over all tokens.

        Raises NotFiniteError if the error or a gradient is not finite; the weights are untouched then.
        """
        tokens = total(torch.stack([target.mask_NC.sum() for target in targets]).sum(), self._ranks)
        try:
            self.trainer.step([partial(self._loss, target, tokens) for target in targets])
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}, in the critic") from error

    def _loss(self, targets: ValueTargets, tokens: Tensor) -> Tensor:
        """Return what these targets add to the mean squared error over ``tokens``, times the number of ranks, because
        gradients are averaged over ranks."""
        error_NC = masked(self._values(targets.prefixes) - targets.returns_NC, targets.mask_NC)
        return error_NC.square().sum() / tokens * self._ranks.ranks

    def state(self) -> dict[str, Tensor]:
        """Return all that a continued critic needs, by name; see ``Trainer.state``."""
        return self.trainer.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state`` as if nothing had happened."""
        self.trainer.restore(state)


@torch.no_grad()
def critic_statistics(seen: Sequence[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Return how well values predict returns. seen: values_NC, returns_NC and mask_NC of some completions each.

    The statistics cover all tokens of the masks: the mean squared error, and the share of the returns' variance that
    the values explain, 1 - Var(R - V) / Var(R). The share is left out if all returns are equal.
    """
    values, returns, mask = (torch.cat([array.flatten() for array in arrays]) for arrays in zip(*seen, strict=True))
    returns, errors = returns[mask > 0], (returns - values)[mask > 0]
    fit = {"critic_loss": errors.square().mean().item()}
    if returns.max() > returns.min():
        fit["critic_explained"] = (1 - errors.var(correction=0) / returns.var(correction=0)).item()
    return fit
