"""One decoding step as a fixed sequence of kernels on fixed memory, so that a GPU can run it as one graph.

Small decoders leave a GPU waiting for Python: a step launches some hundred kernels, and each takes less time than its
launch. Once they are captured, they are launched together.

Shape suffixes: _N rows, _T tokens, _V vocabulary.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from rayexp.sampling.base import PADDING


class StaticStep:
    """One decoding step for all rows: one token each in, the next logits out. Keys and values are in tensors of their
    final size, into which a step writes. Places that a row has not reached yet are masked.

    ``rows`` may be more than are decoded; nothing reads the results of the rest.
    """

    def __init__(self, model: PreTrainedModel, rows: int, prompt_tokens: int, limit: int) -> None:
        device = model.device
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._cache = StaticCache(model.config, max_cache_len=prompt_tokens + limit)
        self._layers = cast(list[Any], self._cache.layers)  # transformers' types do not have a layer's tensors
        self._token_N1 = torch.full((rows, 1), PADDING, device=device)
        self._position_11 = torch.zeros((1, 1), dtype=torch.int64, device=device)
        self._seen_111T = torch.zeros((1, 1, 1, prompt_tokens + limit), dtype=torch.bool, device=device)

    def begin(self, read: DynamicCache, group_size: int) -> Callable[[Tensor], Tensor]:
        """Start after prompts whose keys and values are in ``read``, each shared by ``group_size`` rows. Return the
        step: token_N in, logits_NV (fp32) after these tokens out."""
        for layer, prompt in zip(self._layers, cast(list[Any], read.layers), strict=True):
            if not layer.is_initialized:
                whole = prompt.keys.new_zeros((len(self._token_N1), *prompt.keys.shape[1:]))
                layer.update(whole, whole)
                if torch.is_autocast_enabled(whole.device.type):  # keys are rotated in fp32, and stay so
                    layer.values = layer.values.to(torch.get_autocast_dtype(whole.device.type))
            for ours, theirs in ((layer.keys, prompt.keys), (layer.values, prompt.values)):
                shared = theirs.repeat_interleave(group_size, dim=0)
                ours[: len(shared), :, : shared.shape[2]] = shared
        self._rewind()
        return self._step

    def _step(self, token_N: Tensor) -> Tensor:
        self._token_N1[: len(token_N), 0] = token_N
        return self._next()[: len(token_N)]

    def _rewind(self) -> None:
        """Go back to the end of the prompt."""
        for layer in self._layers:
            layer.cumulative_length.fill_(self._prompt_tokens)
        self._position_11.fill_(self._prompt_tokens)
        self._seen_111T.zero_()
        self._seen_111T[..., : self._prompt_tokens] = True

    def _next(self) -> Tensor:
        """Return the next logits. All memory that this reads and writes stays in place, so that it can be captured."""
        self._seen_111T.index_fill_(3, self._position_11[0], True)
        with _casting_anew(self._model.device.type):
            logits_N1V = self._model(
                input_ids=self._token_N1,
                position_ids=self._position_11,
                attention_mask=self._seen_111T,
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        self._position_11.add_(1)
        return logits_N1V[:, -1].float()


def _casting_anew(device: str) -> AbstractContextManager[Any]:
    """Return the current autocast without its cache of bf16 weights. The cache is freed once the samples are drawn. A
    graph that had read it would keep reading that memory, and would never see new weights."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


class CapturedStep(StaticStep):
    """A ``StaticStep`` whose step is one CUDA graph: a launch in place of hundreds, each longer than its work."""

    _graph: "torch.cuda.CUDAGraph | None" = None

    def _next(self) -> Tensor:
        if self._graph is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries allocate what they need in a first, uncaptured step
                super()._next()
            torch.cuda.current_stream().wait_stream(side)
            self._rewind()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records, computes nothing
                self._logits_NV = super()._next()
            self._graph = graph
        self._graph.replay()
        return self._logits_NV.clone()
