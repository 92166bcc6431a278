"""Scores of tokens from a model's distributions: from all at once if they are small, else from a few at a time.

Log-probabilities over the vocabulary are [N, C, V]: 16 GB in fp32 for 512 completions of 160 tokens and 49,152 symbols,
and as much for the reference. A loss needs only three numbers for each token (``Scores``). So if the distributions are
large, only the hidden states are kept. The output matrix is applied to a few prefixes at a time, and once more in the
backward pass.

Shape suffixes: as in ``rl.scoring``; _X the input of ``Readout.logits`` for a token: V logits, or D hidden features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rayexp.objectives.losses import Scores
from rayexp.rl.scoring import UniquePrefixes, group_hidden, group_logits, score_tokens
from rayexp.stages.memory import HELD

#: Settings with which some architectures change the logits after the output matrix.
BEHIND_THE_MATRIX = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class Readout:
    """The distributions of a model at every token of groups of completions.

    states_UCX: input of ``logits`` at every unique prefix: the logits themselves, or hidden states. at_once: number of
    prefixes whose distributions are held at once. temperature: of the distributions.
    """

    states_UCX: Tensor
    logits: Callable[[Tensor], Tensor]
    at_once: int
    temperature: float

    @classmethod
    def of(cls, model: PreTrainedModel, prefixes: UniquePrefixes, whole: bool, temperature: float = 1.0) -> "Readout":
        """Read groups of completions. whole: whether all distributions are held at once. Raises ValueError if they are
        not, and the architecture changes the logits after its output matrix."""
        unique, tokens = prefixes.tokens_UC.shape
        if whole:
            return cls(group_logits(model, prefixes), lambda logits_UCV: logits_UCV, unique, temperature)
        if scaled := [name for name in BEHIND_THE_MATRIX if getattr(model.config, name, None) not in (None, 1.0)]:
            raise ValueError(
                f"the model has {scaled[0]}, and the distributions of its completions are too many to be held at once; "
                "use fewer or shorter completions in a step, or a model without it"
            )
        at_once = max(1, HELD // ((tokens + 1) * model.config.vocab_size))
        matrix = model.get_output_embeddings()
        assert matrix is not None, "what completions are drawn from has an output matrix"
        return cls(group_hidden(model, prefixes), matrix, at_once, temperature)


def fits(model: PreTrainedModel, tokens: int) -> bool:
    """Return whether the distributions at ``tokens`` tokens, those of a whole step, may be held at once."""
    return tokens * model.config.vocab_size <= HELD


class _Members(NamedTuple):
    """Completions whose prefixes are in one chunk."""

    row_N: Tensor
    tokens_NC: Tensor
    mask_NC: Tensor


def token_scores(
    policy: Readout,
    reference: Readout | None,
    prefixes: UniquePrefixes,
    tokens_NC: Tensor,
    mask_NC: Tensor,
    kl_estimator: str,
) -> Scores:
    """Return the scores that a loss needs of each token of groups of completions. Without a reference there is no KL.

    Scores that are computed in chunks are the same up to rounding: 1e-5 nats in fp32.
    """

    def scored(states_UCX: Tensor, reference_UCX: Tensor | None, members: _Members) -> Scores:
        policy_NCV, reference_NCV = _logprobs(policy, states_UCX, members), None
        if reference and reference_UCX is not None:
            with torch.no_grad():
                reference_NCV = _logprobs(reference, reference_UCX, members)
        return score_tokens(policy_NCV, reference_NCV, members.tokens_NC, members.mask_NC, kl_estimator)

    parts = policy.states_UCX.split(policy.at_once)
    references = reference.states_UCX.split(policy.at_once) if reference else [None] * len(parts)
    if len(parts) == 1:
        return scored(parts[0], references[0], _Members(prefixes.row_N, tokens_NC, mask_NC))
    found, indices = [], []
    for start, part, of_reference in zip(range(0, 2**62, policy.at_once), parts, references, strict=False):
        index_N = ((prefixes.row_N >= start) & (prefixes.row_N < start + len(part))).nonzero().squeeze(1)
        members = _Members(prefixes.row_N[index_N] - start, tokens_NC[index_N], mask_NC[index_N])
        found.append(checkpoint(scored, part, of_reference, members, use_reentrant=False))
        indices.append(index_N)
    back_N = torch.cat(indices).argsort()

    def joined(values: list[Tensor]) -> Tensor:
        return torch.cat(values)[back_N]

    penalties = [each.kl_NC for each in found if each.kl_NC is not None]
    return Scores(
        logprob_NC=joined([each.logprob_NC for each in found]),
        entropy_NC=joined([each.entropy_NC for each in found]),
        kl_NC=joined(penalties) if penalties else None,
    )


def _logprobs(readout: Readout, states_UCX: Tensor, members: _Members) -> Tensor:
    """Return log-probabilities over the vocabulary of completions: [N, C, V], fp32."""
    logits_UCV = readout.logits(states_UCX).float()
    if readout.temperature != 1:  # a division by 1 would only copy them
        logits_UCV = logits_UCV / readout.temperature
    return logits_UCV.log_softmax(dim=-1).index_select(0, members.row_N)
