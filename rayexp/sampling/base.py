"""The interface of samplers: token ids and seeds in, token ids and behaviour log-probabilities out.

A sampler draws from the decoder's distribution over the whole vocabulary, at the temperature of the stage. Equal
weights, prompts and seeds give equal completions, however they are batched.

Shape suffixes: _P prompts, _N completions (prompts times group, a group's members side by side), _C tokens.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from rayexp import rng

if TYPE_CHECKING:
    from torch import Tensor

    from rayexp.tasks import Vocabulary

#: Token after the end of a completion. Any token would do, because masks exclude it.
PADDING = 0
#: Distance between the seeds of two prompts. Member j of a group uses seed + j, as vLLM does, so that two prompts
#: whose seeds lie closer than the group is large would share random numbers.
SEED_STRIDE = 1024


def prompt_seed(*parts: str | int) -> int:
    """Return a seed for one prompt of one step of one run: a multiple of SEED_STRIDE, below 2^62."""
    return (rng.stream_key(*parts) >> 12) * SEED_STRIDE


#: Arrays by name: numpy.ndarray, or torch.Tensor if a learner on a GPU passes its own.
Weights: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Completions:
    """Completions of prompts, as arrays. tokens_NC and logprobs_NC are padded on the right (``PADDING``, 0.0) from
    length_N on; ``<eos>`` counts."""

    tokens_NC: np.ndarray  # int64
    logprobs_NC: np.ndarray  # float32, of the distribution sampled from
    length_N: np.ndarray  # int64
    weight_version: int

    @property
    def mask_NC(self) -> np.ndarray:
        """float32, 1 on tokens of the completion."""
        return (np.arange(self.tokens_NC.shape[1]) < self.length_N[:, None]).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Return them as one file, for ``from_bytes``."""
        file = io.BytesIO()
        arrays: dict[str, Any] = {each.name: np.asarray(getattr(self, each.name)) for each in fields(self)}
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Completions":
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(**{**arrays, "weight_version": int(arrays["weight_version"])})

    def ended(self, vocabulary: "Vocabulary") -> np.ndarray:
        """Return which completions end and are not cut off at their limit: bool [N]."""
        return np.array([vocabulary.end_of(row) is not None for row in self.rows])

    def until_their_end(self, vocabulary: "Vocabulary") -> "Completions":
        """Return them without the tokens behind the end of each. Samplers know no end but ``<eos>``; a vocabulary may
        have another."""
        ends = [vocabulary.end_of(row) or len(row) for row in self.rows]
        if ends == self.length_N.tolist():
            return self
        tokens = [row[:end] for row, end in zip(self.rows, ends, strict=True)]
        logprobs = [row_C[:end] for row_C, end in zip(self.logprobs_NC.tolist(), ends, strict=True)]
        return Completions.from_rows(tokens, logprobs, self.weight_version)

    @property
    def rows(self) -> list[list[int]]:
        """Completions as lists of token ids, without padding."""
        return [row[:n].tolist() for row, n in zip(self.tokens_NC, self.length_N, strict=True)]

    @classmethod
    def from_rows(
        cls, tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]], weight_version: int
    ) -> "Completions":
        width = max(len(row) for row in tokens)
        tokens_NC = np.full((len(tokens), width), PADDING, dtype=np.int64)
        logprobs_NC = np.zeros((len(tokens), width), dtype=np.float32)
        for i, (row, values) in enumerate(zip(tokens, logprobs, strict=True)):
            tokens_NC[i, : len(row)] = row
            logprobs_NC[i, : len(row)] = values
        length_N = np.array([len(row) for row in tokens], dtype=np.int64)
        return cls(tokens_NC, logprobs_NC, length_N, weight_version)

    def take(self, row_N: np.ndarray) -> "Completions":
        """Return some of them, in the order of their row numbers in ``row_N``."""
        return Completions(self.tokens_NC[row_N], self.logprobs_NC[row_N], self.length_N[row_N], self.weight_version)

    @classmethod
    def concatenate(cls, parts: "Sequence[Completions]") -> "Completions":
        """Join completions that were drawn from the same weights, in the order of the parts."""
        width = max(part.tokens_NC.shape[1] for part in parts)

        def joined(arrays: Sequence[np.ndarray], fill: float) -> np.ndarray:
            wide = [np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill) for array in arrays]
            return np.concatenate(wide)

        return cls(
            joined([part.tokens_NC for part in parts], PADDING),
            joined([part.logprobs_NC for part in parts], 0.0),
            np.concatenate([part.length_N for part in parts]),
            parts[0].weight_version,
        )


def as_tensors(weights: Weights) -> "dict[str, Tensor]":
    """Return the weights as tensors, without a copy; they may only be read."""
    import torch  # here, so that a driver which only plans stays small

    with warnings.catch_warnings():
        # torch warns of arrays that are read-only, as those out of Ray's shared memory are.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.as_tensor(weight) for name, weight in weights.items()}


class Sampler(Protocol):
    """A decoder that draws completions, and whose weights are trained elsewhere."""

    def sync(self, weights: Weights, version: int) -> None:
        """Take new weights: by transformers' names, in fp32, as arrays of the host or tensors of any device. They may
        be those of some blocks, if the others are taken before anything is sampled. Nothing else may change what is
        sampled."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        group_size: int,
        max_tokens: Sequence[int],
        temperature: float = 1.0,
    ) -> Completions:
        """Return ``group_size`` completions of each prompt, each at most its prompt's ``max_tokens`` long."""
        ...

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> Completions:
        """Return one completion of each prompt: the most likely token at every step."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the log-probability of every token but the first of each sequence, as the sampler computes it."""
        ...
