"""Log-probabilities of completions. Prompts and prefixes that several completions share are read once.

Prompts are longer than answers, and a group shares one. A confident policy draws the same completion again and again:
after SFT on the composition axis up to 70 % of a group are copies of other members, after GRPO nearly all.

Shape suffixes: _N completions, _P prompts, _T tokens, _C completion tokens, _V vocabulary, _U unique prefixes, _D the
width of the model, _K the index of a prompt and the tokens of a prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rayexp.models import devices
from rayexp.models.cache import gather_cache_rows, pad_rows
from rayexp.objectives.kl import kl_to_reference
from rayexp.objectives.losses import Scores


@dataclass(frozen=True)
class UniquePrefixes:
    """The input of a decoder that scores groups of completions: each prompt once, and each different prefix once.

    A prefix is a completion without its last token, which is predicted and never read.
    """

    prompts_PT: Tensor
    tokens_UC: Tensor  # one token shorter than completions
    prompt_U: Tensor  # index of the prompt that the prefix follows
    row_N: Tensor  # index of the completion's prefix

    @classmethod
    def of(cls, prompts_PT: np.ndarray, tokens_NC: np.ndarray, device: torch.device = devices.CPU) -> "UniquePrefixes":
        """Find the prefixes. In ``tokens_NC`` the members of each prompt's group are side by side.

        Prefixes are compared on the host, because their number determines a shape, and the host would have to wait for
        a GPU to know it. If there are no completions, there is still one prefix, because decoders do not read empty
        batches.
        """
        groups, (completions, width) = len(prompts_PT), tokens_NC.shape
        if not groups:
            prompts_PT = np.zeros((1, prompts_PT.shape[1]), np.int64)
        prompt_N = np.repeat(np.arange(groups), completions // max(1, groups))
        keys_NK = np.concatenate([prompt_N[:, None], tokens_NC[:, :-1]], axis=1, dtype=np.int64)
        keys_UK, row_N = np.unique(keys_NK, axis=0, return_inverse=True)
        if not groups:
            keys_UK = np.zeros((1, width), np.int64)
        keys_UK = pad_rows(keys_UK)
        return cls(
            torch.tensor(prompts_PT, dtype=torch.int64, device=device),
            torch.tensor(keys_UK[:, 1:], device=device),
            torch.tensor(keys_UK[:, 0], device=device),
            torch.tensor(row_N.reshape(-1), device=device),
        )


def group_logits(model: PreTrainedModel, prefixes: UniquePrefixes) -> Tensor:
    """Return the model's logits for every token of the completions: [U, C, V]. Row ``prefixes.row_N[n]`` belongs to
    completion n."""

    def logits(tokens_NT: Tensor, cache: DynamicCache | None, keep: int) -> Tensor:
        return model(input_ids=tokens_NT, **_cached(cache), logits_to_keep=keep).logits

    return _read(model, prefixes, logits)


def group_hidden(model: PreTrainedModel, prefixes: UniquePrefixes) -> Tensor:
    """Return the hidden states from which the output matrix makes the logits of ``group_logits``: [U, C, D]."""

    def hidden(tokens_NT: Tensor, cache: DynamicCache | None, keep: int) -> Tensor:
        states = model.base_model(input_ids=tokens_NT, **_cached(cache)).last_hidden_state
        return states[:, -keep:]

    return _read(model, prefixes, hidden)


def _cached(cache: DynamicCache | None) -> dict[str, Any]:
    return {"past_key_values": cache, "use_cache": cache is not None}


def _read(
    model: PreTrainedModel, prefixes: UniquePrefixes, read: Callable[[Tensor, DynamicCache | None, int], Tensor]
) -> Tensor:
    """Return the outputs of ``read`` for every token of the completions: [U, C, ...]. ``read`` takes tokens, a cache,
    and the number of last tokens whose outputs it returns (0: all).

    A group shares the keys and values of its prompt. Completions with the same prefix share its whole computation,
    gradients included. With gradient checkpointing no prompt is shared, because the recomputation would find keys in
    the cache that it is about to put there.
    """
    if model.is_gradient_checkpointing:
        prompts_UT = prefixes.prompts_PT.index_select(0, prefixes.prompt_U)
        return read(torch.cat([prompts_UT, prefixes.tokens_UC], dim=1), None, prefixes.tokens_UC.shape[1] + 1)
    cache = DynamicCache()
    found = read(prefixes.prompts_PT, cache, 1).index_select(0, prefixes.prompt_U)
    if prefixes.tokens_UC.shape[1]:
        gather_cache_rows(cache, prefixes.prompt_U)
        found = torch.cat([found, read(prefixes.tokens_UC, cache, 0)], dim=1)
    return found


def group_logprobs(model: PreTrainedModel, prefixes: UniquePrefixes) -> Tensor:
    """Return log-probabilities over the vocabulary at every token of groups of completions: [N, C, V], fp32."""
    return group_logits(model, prefixes).float().log_softmax(dim=-1).index_select(0, prefixes.row_N)


def completion_logprobs(
    model: PreTrainedModel, inputs_NT: Tensor, completion_tokens: int, temperature: float = 1.0
) -> Tensor:
    """Return log-probabilities over the vocabulary at the last ``completion_tokens`` positions: [N, C, V], fp32.

    Each row is read by itself.
    """
    logits_NCV = model(input_ids=inputs_NT, use_cache=False, logits_to_keep=completion_tokens).logits
    return (logits_NCV.float() / temperature).log_softmax(dim=-1)


def score_tokens(
    policy_NCV: Tensor, reference_NCV: Tensor | None, tokens_NC: Tensor, mask_NC: Tensor, kl_estimator: str
) -> Scores:
    """Reduce log-probabilities over the vocabulary to the scores that a loss needs; no KL without a reference."""
    with torch.no_grad():
        entropy_NC = -(policy_NCV.exp() * policy_NCV).sum(dim=-1)
    kl_NC = None
    if reference_NCV is not None:
        kl_NC = kl_to_reference(policy_NCV, reference_NCV, tokens_NC, mask_NC, kl_estimator)
    return Scores(policy_NCV.gather(-1, tokens_NC[..., None]).squeeze(-1), entropy_NC, kl_NC)
