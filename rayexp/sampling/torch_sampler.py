"""The reference sampler: the decoder itself, with its key-value cache, a whole batch at a time.

vLLM has to agree with it. Evaluation uses it, and so does GRPO with ``sampler="torch"``. Random numbers are a pure
function of (seed, position), so a completion does not depend on what it is batched with.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rayexp import rng
from rayexp.models import devices
from rayexp.models.cache import gather_cache_rows, pad_rows
from rayexp.sampling.base import PADDING, Completions, Weights, as_tensors
from rayexp.sampling.cuda_graph import CapturedStep

#: Captured decoding steps, each with a cache of its own, that a sampler keeps.
SHAPES_KEPT = 8


class TorchSampler:
    """``Sampler`` over a decoder in this process; ``sync`` writes into that decoder. precision: of its computations."""

    def __init__(self, model: PreTrainedModel, weight_version: int = -1, precision: str = "fp32") -> None:
        self._model = model
        self._eos: int = model.config.eos_token_id
        self._precision = precision
        self._steps: dict[tuple[int, int, int], CapturedStep] = {}
        self.weight_version = weight_version

    def sync(self, weights: Weights, version: int) -> None:
        """See ``Sampler.sync``."""
        others = self._model.load_state_dict(as_tensors(weights), strict=False).unexpected_keys
        if others:
            raise KeyError(f"the decoder has no weights {', '.join(others)}")
        self.weight_version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        group_size: int,
        max_tokens: Sequence[int],
        temperature: float = 1.0,
    ) -> Completions:
        """See ``Sampler.generate``. A token is the inverse of the cumulative distribution, in float64, at a
        counter-based uniform number."""
        seeds_N = np.array([seed + member for seed in seeds for member in range(group_size)], dtype=np.uint64)

        def choose(logits_NV: Tensor, position: int, rows_N: np.ndarray) -> Tensor:
            cumulative_NV = logits_NV.double().softmax(dim=-1).cumsum(dim=-1)
            u_N = torch.from_numpy(rng.uniform(rng.stream_key("sample", position), seeds_N[rows_N]))
            u_N1 = u_N.to(logits_NV.device)[:, None] * cumulative_NV[:, -1:]
            return torch.searchsorted(cumulative_NV, u_N1, right=True).squeeze(1).clamp(max=logits_NV.shape[1] - 1)

        return self._decode(prompts, max_tokens, group_size, choose, temperature)

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> Completions:
        """See ``Sampler.greedy``."""
        return self._decode(prompts, max_tokens, 1, lambda logits_NV, *_: logits_NV.argmax(dim=-1))

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See ``Sampler.score``."""
        scores = []
        for sequence in sequences:
            ids_1T = torch.tensor([list(sequence)], device=self._model.device)
            with devices.autocast(self._model, self._precision):
                logits_TV = self._model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            logprobs_TV = logits_TV.log_softmax(dim=-1)
            scores.append(logprobs_TV.gather(1, ids_1T[0, 1:, None]).squeeze(1).cpu().numpy())
        return scores

    @torch.no_grad()
    def _decode(self, prompts, max_tokens, group_size, choose, temperature: float = 1.0) -> Completions:
        """Decode prompts of one shape together. Return completions in the order of the prompts."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True)):
            groups.setdefault((len(prompt), int(limit)), []).append(i)
        tokens: list[list[int]] = [[] for _ in range(len(prompts) * group_size)]
        logprobs: list[list[float]] = [[] for _ in tokens]
        for (_, limit), members in groups.items():
            prompts_PT = torch.tensor([list(map(int, prompts[i])) for i in members], device=self._model.device)
            rows_N = np.array([i * group_size + j for i in members for j in range(group_size)])
            with devices.autocast(self._model, self._precision):
                chosen_NC, scores_NC = self._decode_batch(prompts_PT, limit, group_size, rows_N, choose, temperature)
            for row, ids, values in zip(rows_N, chosen_NC.tolist(), scores_NC.tolist(), strict=True):
                length = ids.index(self._eos) + 1 if self._eos in ids else len(ids)
                tokens[row], logprobs[row] = ids[:length], values[:length]
        return Completions.from_rows(tokens, logprobs, self.weight_version)

    def _decode_batch(
        self, prompts_PT: Tensor, limit: int, group_size: int, rows_N: np.ndarray, choose, temperature: float
    ):
        """Return tokens and log-probabilities of prompts of one shape. Each prompt is read once for its group."""
        cache = DynamicCache()
        logits_PV = self._model(input_ids=prompts_PT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits_NV = logits_PV[:, -1].repeat_interleave(group_size, dim=0).float() / temperature
        step = self._stepped(cache, group_size, len(logits_NV), prompts_PT.shape[1], limit)
        ended_N = torch.zeros(len(logits_NV), dtype=torch.bool, device=logits_NV.device)
        chosen, scores = [], []
        for position in range(limit):
            token_N = choose(logits_NV, position, rows_N)
            chosen.append(token_N)
            scores.append(logits_NV.log_softmax(dim=-1).gather(1, token_N[:, None]).squeeze(1))
            ended_N |= token_N == self._eos
            if position + 1 == limit or bool(ended_N.all()):
                break
            logits_NV = step(token_N.where(~ended_N, PADDING)) / temperature
        return torch.stack(chosen, dim=1), torch.stack(scores, dim=1)

    def _stepped(
        self, cache: DynamicCache, group_size: int, rows: int, prompt_tokens: int, limit: int
    ) -> Callable[[Tensor], Tensor]:
        """Return the function that decodes one more token of every row: tokens in, the logits after them out."""
        if self._model.device.type == "cuda":
            return self._captured(rows, prompt_tokens, limit).begin(cache, group_size)
        return self._shared(cache, np.repeat(np.arange(rows // group_size), group_size))

    def _shared(self, cache: DynamicCache, row_N: np.ndarray) -> Callable[[Tensor], Tensor]:
        """Return the decoding step for CPUs, where the amount of work counts. row_N: the row of each completion in the
        cache.

        Completions of a group share one row of the cache until they differ; then the row is split. The cache grows with
        each token, because steps over its final length cost 1.1 to 1.3 times as much.
        """
        size, known = self._model.config.vocab_size, 0

        def step(token_N: Tensor) -> Tensor:
            nonlocal row_N, known
            longer_U, row_N = np.unique(row_N * size + token_N.numpy(), return_inverse=True)
            row_U, token_U = (torch.from_numpy(part) for part in np.divmod(pad_rows(longer_U), size))
            if len(longer_U) > known:  # otherwise each row goes on where it is
                known = len(longer_U)
                gather_cache_rows(cache, row_U)
            output = self._model(input_ids=token_U[:, None], past_key_values=cache, use_cache=True)
            return output.logits[:, -1].float().index_select(0, torch.from_numpy(row_N))

        return step

    def _captured(self, rows: int, prompt_tokens: int, limit: int) -> CapturedStep:
        """Return the captured step for this shape, or a new one. Weights that are written in place leave it valid."""
        room = 1 << (rows - 1).bit_length()  # powers of two, so that there are few shapes to capture
        shape = (room, prompt_tokens, limit)
        if shape not in self._steps:
            if len(self._steps) == SHAPES_KEPT:
                self._steps.pop(next(iter(self._steps)))
            self._steps[shape] = CapturedStep(self._model, *shape)
        return self._steps[shape]
