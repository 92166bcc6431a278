"""The seam for tasks: all that the rest of the project knows of one.

A task is a family of prompts whose completions can be verified. Its prompts are cut into cells, and each cell has a
role: ``id`` cells are always in pretraining, ``ood`` cells at the share ``ood_ratio``, ``probe`` cells never. Sample i
of a cell is a pure function of (seed, split, i): no data file, no loader state. Questions are held out by hash: those
of the split ``test`` are in no other split, whatever the seed.

Shape suffixes: _N samples, _T tokens.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rayexp import rng
from rayexp.parts import Part

ROLES = ("id", "ood", "probe")
SPLITS = ("pretrain", "sft", "grpo", "test")
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a task, one token each; the first three are ``<pad>``, ``<bos>`` and ``<eos>``.

    size: rows of the embedding table, a multiple of 64, which is a friendlier shape for GPUs.
    """

    symbols: tuple[str, ...]
    pad: int = 0
    bos: int = 1
    eos: int = 2

    @property
    def size(self) -> int:
        return -(-len(self.symbols) // 64) * 64

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: token for token, symbol in enumerate(self.symbols)}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of blank-separated symbols. Raises KeyError on an unknown symbol."""
        return [self._ids[symbol] for symbol in text.split()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the symbols of token ids, blank-separated; embedding rows without a symbol read ``<unused>``."""
        return " ".join(self.symbols[token] if token < len(self.symbols) else "<unused>" for token in tokens)


@dataclass(frozen=True)
class TokenBatch:
    """Samples of one exact shape: no padding, and the completion starts at the same column in every row."""

    tokens_NT: np.ndarray  # unsigned integers
    prompt_tokens: int
    index_N: np.ndarray  # int64, the sample's number in its split
    ood_N: np.ndarray  # bool, whether the sample is of an OOD cell
    positions_NT: np.ndarray | None = None  # float32, where the tokens stand; None: at 0, 1, 2, ...

    @property
    def prompts(self) -> np.ndarray:
        """Prompts, [N, prompt_tokens]."""
        return self.tokens_NT[:, : self.prompt_tokens]

    def shard(self, rank: int, ranks: int) -> "TokenBatch":
        """Return every ``ranks``-th row from row ``rank`` on; may be empty."""
        rows = slice(rank, None, ranks)
        positions_NT = None if self.positions_NT is None else self.positions_NT[rows]
        return TokenBatch(self.tokens_NT[rows], self.prompt_tokens, self.index_N[rows], self.ood_N[rows], positions_NT)


@dataclass(frozen=True)
class Solution:
    """The gold completion of a prompt, ``<eos>`` included, and what each of its steps writes."""

    completion: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Verdict:
    """answer: the final answer is right, and ended by ``<eos>``. steps_right: length of the longest right prefix of the
    ``steps`` steps that the solution has. trace: every step is right, and nothing else was written."""

    answer: bool
    trace: bool
    steps_right: int
    steps: int


class Task(Part):
    """A family of prompts with verifiable completions. Equal tasks generate equal samples.

    Subclasses add ``kind`` (a literal) and their settings, and implement the methods below the line; what stands above
    it follows from those.
    """

    def mixture(self, split: str, seed: int, ood_ratio: float, start: int, count: int) -> list[TokenBatch]:
        """Return samples ``start .. start+count`` of a mixture of ID cells and a share ``ood_ratio`` of OOD cells.

        The share is exact in every prefix (sample i is OOD where floor((i+1) r) > floor(i r)), and so is the balance of
        cells within each part. Sample i is sample i of its cell, so mixtures of two ratios differ only in cells.
        """
        before_N = np.floor(np.arange(start, start + count + 1, dtype=np.int64) * ood_ratio).astype(np.int64)
        return self.mixed(split, seed, start, before_N)

    def mixed(self, split: str, seed: int, start: int, ood_before_N: np.ndarray) -> list[TokenBatch]:
        """Return samples from ``start`` on, of which those are OOD that the counts say. Within each part cells take
        turns, and sample i is sample i of its cell.

        ood_before_N: number of OOD samples before each of these samples, and before the one behind the last of them.
        """
        before_N, ood_N = ood_before_N[:-1], np.diff(ood_before_N) > 0
        index_N = start + np.arange(len(before_N), dtype=np.int64)
        parts = ((self.cells("id"), ~ood_N, index_N - before_N), (self.cells("ood"), ood_N, before_N))
        assigned = [
            (cell, index_N[member_N & (ordinal_N % len(cells) == position)])
            for cells, member_N, ordinal_N in parts
            for position, cell in enumerate(cells)
        ]
        return self.batches(split, seed, [(cell, rows) for cell, rows in assigned if len(rows)])

    def of_role(self, split: str, seed: int, role: str, index_N: np.ndarray) -> list[TokenBatch]:
        """Return samples ``index_N`` of the cells of one role; sample i is of cell i modulo their number."""
        return self.of_roles(split, seed, {role: index_N})

    def of_roles(self, split: str, seed: int, index_N: Mapping[str, np.ndarray]) -> list[TokenBatch]:
        """Return samples of the cells of several roles, as ``of_role`` does for one."""
        assigned = [
            (cell, rows[rows % len(cells) == i])
            for role, rows in index_N.items()
            for cells in [self.cells(role)]
            for i, cell in enumerate(cells)
        ]
        return self.batches(split, seed, [(cell, rows) for cell, rows in assigned if len(rows)])

    def of_cell(self, split: str, seed: int, cell: str, start: int, count: int) -> TokenBatch:
        """Return samples ``start .. start+count`` of one cell."""
        return self.batches(split, seed, [(cell, np.arange(start, start + count, dtype=np.int64))])[0]

    def batches(self, split: str, seed: int, assigned: Sequence[tuple[str, np.ndarray]]) -> list[TokenBatch]:
        """Return the samples numbered for each cell, those of one shape together, shortest prompt first."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
        by_shape: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = {}
        for cell, rows in assigned:
            by_shape.setdefault((self.prompt_tokens(cell), self.completion_tokens(cell)), []).append((cell, rows))
        ood = set(self.cells("ood"))
        return [
            TokenBatch(
                tokens_NT=np.concatenate([self.write(split, seed, cell, rows) for cell, rows in group]),
                prompt_tokens=prompt_tokens,
                index_N=np.concatenate([rows for _, rows in group]),
                ood_N=np.concatenate([np.full(len(rows), cell in ood) for cell, rows in group]),
            )
            for (prompt_tokens, _), group in sorted(by_shape.items())
        ]

    def roles(self) -> list[tuple[str, str]]:
        """Return every cell with its role, ID first."""
        return [(role, cell) for role in ROLES for cell in self.cells(role)]

    def max_completion_tokens(self, cell: str) -> int:
        """Return how many tokens a sampler may write for a cell."""
        return self.completion_tokens(cell)

    @property
    def max_tokens(self) -> int:
        """The longest prompt with the most that may be written after it, of any cell."""
        return max(self.prompt_tokens(cell) + self.max_completion_tokens(cell) for _, cell in self.roles())

    @property
    def unique(self) -> bool:
        """True if the gold completion is the only right one. Its mass is then Q itself, else a lower bound of Q."""
        return True

    # Each task says the rest of itself

    @property
    @abstractmethod
    def label(self) -> str:
        """A few characters for people, without ``/``."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Its symbols."""

    @abstractmethod
    def cells(self, role: str) -> tuple[str, ...]:
        """Return the names of the cells of one of ``ROLES``."""

    @abstractmethod
    def prompt_tokens(self, cell: str) -> int:
        """Return the length of a prompt of a cell."""

    @abstractmethod
    def completion_tokens(self, cell: str) -> int:
        """Return the length of the gold completion of a cell, ``<eos>`` included."""

    @abstractmethod
    def write(self, split: str, seed: int, cell: str, index_N: np.ndarray) -> np.ndarray:
        """Return the samples numbered ``index_N`` of one cell: tokens_NT, prompt and gold completion."""

    @abstractmethod
    def solve(self, prompt: Sequence[int]) -> Solution:
        """Solve a prompt without the code that wrote it. Raises ValueError on a malformed prompt."""

    @abstractmethod
    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        """Compare a completion (token ids up to and including ``<eos>``) with the solution of its prompt."""


def draw_questions(family: tuple[str, int], count: int, split: str, seed: int, index_N: np.ndarray) -> np.ndarray:
    """Return the questions of samples ``index_N`` as numbers below ``count``, uint64.

    One question in ten is held out, by a hash of its number and of the family it is of, such as (kind, length): the
    split ``test`` draws from these, uniformly, and every other split from the rest.
    """
    stream, size = rng.stream_key(seed, split), np.uint64(count)
    hashed = rng.stream_key("held out", *family)

    def misplaced(question_N: np.ndarray) -> np.ndarray:
        held_out_N = rng.random_bits(hashed, question_N) % np.uint64(HELD_OUT_ONE_IN) == 0
        return np.flatnonzero(held_out_N != (split == "test"))

    question_N, attempt = rng.random_bits(stream, index_N) % size, 0
    while len(wrong := misplaced(question_N)):
        attempt += 1
        question_N[wrong] = rng.random_bits(stream, index_N[wrong], slot=attempt) % size
    return question_N
