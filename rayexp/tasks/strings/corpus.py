"""Samples of the world. Sample i of a split is a pure function of (seed, split, i): no data file, no loader state.

Strings are held out by hash: a fixed tenth of them belongs to the split ``test`` and to nothing else, in every
alphabet and for every task, so no stage can ever have trained on a test string.

Shape suffixes: _N samples, _L letters, _T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rayexp import rng
from rayexp.errors import not_among
from rayexp.tasks.strings import operations, vocabulary
from rayexp.tasks.strings.axes import AXES, Axis, Cell

SPLITS = ("pretrain", "sft", "grpo", "test")
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class World:
    """Settings of a world. Two equal worlds generate the same samples.

    axis: a name in ``AXES``. graph: ``hidden`` (G1, one cycle, never shown) or ``printed`` (G2, a fresh map in every
    prompt). traversal: ``uniform``, or ``positional`` (C2: T and S do not commute). samples: ``answer`` (only the final
    string) or ``trace`` (the string after every operation). seed: of the hidden cycle.
    """

    axis: str
    graph: str = "hidden"
    traversal: str = "uniform"
    samples: str = "answer"
    seed: int = 0

    __pydantic_config__ = {"extra": "forbid", "strict": True}

    def __post_init__(self) -> None:
        allowed = {
            "axis": tuple(AXES),
            "graph": ("hidden", "printed"),
            "traversal": ("uniform", "positional"),
            "samples": ("answer", "trace"),
        }
        for name, choices in allowed.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(not_among(f"world.{name}", value, choices))
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"world.seed is {self.seed!r}; allowed: integers >= 0")

    @property
    def cells(self) -> Axis:
        """The axis itself: its ID, OOD and probe cells."""
        return AXES[self.axis]

    def prompt_tokens(self, cell: Cell) -> int:
        """Length of a prompt of ``cell``, ``<bos>`` and ``=`` included."""
        printed = 0
        if self.graph == "printed":
            alphabets = 1 if cell.foreign in (0, cell.length) else 2
            printed = 2 * vocabulary.ALPHABET * alphabets + 1
        return 1 + printed + cell.length + 1 + len(cell.operations) + 1

    def completion_tokens(self, cell: Cell) -> int:
        """Length of the one correct completion of ``cell`` (for traces: of the gold one), ``<eos>`` included."""
        steps = len(cell.operations) if self.samples == "trace" else 1
        return steps * (cell.length + 1)

    def completion_budget(self, cell: Cell) -> int:
        """Tokens a sampler may write for ``cell``: the gold length, and for traces one string more, for detours."""
        return self.completion_tokens(cell) + (cell.length + 1 if self.samples == "trace" else 0)

    @property
    def max_tokens(self) -> int:
        """The longest prompt with its completion budget, of any cell."""
        return max(self.prompt_tokens(cell) + self.completion_budget(cell) for _, cell in self.cells.roles())


@dataclass(frozen=True)
class TokenBatch:
    """Samples of one exact shape: no padding, and the completion starts at the same column in every row."""

    tokens_NT: np.ndarray  # uint8
    prompt_tokens: int
    index_N: np.ndarray  # int64, the sample's number in its split
    ood_N: np.ndarray  # bool, whether the sample is of an OOD cell

    @property
    def prompts(self) -> np.ndarray:
        """Prompts, uint8 [N, prompt_tokens]."""
        return self.tokens_NT[:, : self.prompt_tokens]

    def shard(self, rank: int, ranks: int) -> "TokenBatch":
        """Every ``ranks``-th row from row ``rank`` on; may be empty."""
        rows = slice(rank, None, ranks)
        return TokenBatch(self.tokens_NT[rows], self.prompt_tokens, self.index_N[rows], self.ood_N[rows])


class Corpus:
    """All samples of a world under one seed."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed

    @cached_property
    def _cycle(self) -> np.ndarray:
        return operations.hidden_cycle(self.world.seed)

    def mixture(self, split: str, ood_ratio: float, start: int, count: int) -> list[TokenBatch]:
        """Samples ``start .. start+count`` of a mixture of ID cells and a share ``ood_ratio`` of OOD cells.

        The share is exact in every prefix (sample i is OOD where floor((i+1) r) > floor(i r)), and so is the balance
        of cells within each part; at equal seed, mixtures of different ratios hold the same strings.
        """
        index_N = np.arange(start, start + count, dtype=np.int64)
        before_N = np.floor(index_N * ood_ratio).astype(np.int64)
        ood_N = np.floor((index_N + 1) * ood_ratio).astype(np.int64) > before_N
        axis = self.world.cells
        assigned = [
            (cell, index_N[member_N & (ordinal_N % len(cells) == position)])
            for cells, member_N, ordinal_N in ((axis.id, ~ood_N, index_N - before_N), (axis.ood, ood_N, before_N))
            for position, cell in enumerate(cells)
        ]
        return self._token_batches(split, [(cell, rows) for cell, rows in assigned if len(rows)])

    def tasks(self, split: str, role: str, index_N: np.ndarray) -> list[TokenBatch]:
        """The samples numbered ``index_N`` of the cells of one role; sample i is of cell i modulo their number."""
        cells = self.world.cells.cells(role)
        return self._token_batches(
            split, [(cell, rows) for i, cell in enumerate(cells) if len(rows := index_N[index_N % len(cells) == i])]
        )

    def cell(self, split: str, cell: Cell, start: int, count: int) -> TokenBatch:
        """Samples ``start .. start+count`` of one cell."""
        return self._token_batches(split, [(cell, np.arange(start, start + count, dtype=np.int64))])[0]

    def _token_batches(self, split: str, assigned: Sequence[tuple[Cell, np.ndarray]]) -> list[TokenBatch]:
        if split not in SPLITS:
            raise ValueError(not_among("split", split, SPLITS))
        by_shape: dict[tuple[int, int], list[tuple[Cell, np.ndarray]]] = {}
        for cell, rows in assigned:
            shape = (self.world.prompt_tokens(cell), self.world.completion_tokens(cell))
            by_shape.setdefault(shape, []).append((cell, rows))
        ood = set(self.world.cells.ood)
        return [
            TokenBatch(
                tokens_NT=np.concatenate([self._write(split, cell, rows) for cell, rows in group]),
                prompt_tokens=prompt_tokens,
                index_N=np.concatenate([rows for _, rows in group]),
                ood_N=np.concatenate([np.full(len(rows), cell in ood) for cell, rows in group]),
            )
            for (prompt_tokens, _), group in sorted(by_shape.items())
        ]

    def _write(self, split: str, cell: Cell, index_N: np.ndarray) -> np.ndarray:
        """tokens_NT of samples of one cell: ``<bos> [map ;] x : operations = y [; y ...] <eos>``."""
        world, length = self.world, cell.length
        stream = rng.stream_key(self.seed, split)
        letters_NL = self._strings(stream, split == "test", length, index_N)
        if cell.foreign:
            letters_NL += np.uint8(vocabulary.ALPHABET) * _chosen(stream, index_N, length, cell.foreign)
        successor = self._cycle if world.graph == "hidden" else operations.printed_maps(stream, index_N)
        steps = operations.apply(cell.operations, letters_NL, successor, world.traversal == "positional")

        total = world.prompt_tokens(cell) + world.completion_tokens(cell)
        tokens_NT = np.empty((len(index_N), total), dtype=np.uint8)
        tokens_NT[:, 0] = vocabulary.BOS
        column = 1

        def put(block: np.ndarray | int, width: int = 1) -> None:
            nonlocal column
            tokens_NT[:, column : column + width] = block
            column += width

        if world.graph == "printed":
            edges_NE = _edge_list(stream, index_N, successor, cell)
            put(edges_NE + vocabulary.LETTER0, edges_NE.shape[1])
            put(vocabulary.SEMICOLON)
        put(letters_NL + vocabulary.LETTER0, length)
        put(vocabulary.COLON)
        for operation in cell.operations:
            put(vocabulary.OPERATIONS[operation])
        put(vocabulary.EQUALS)
        for number, step_NL in enumerate(steps if world.samples == "trace" else steps[-1:]):
            if number:
                put(vocabulary.SEMICOLON)
            put(step_NL + vocabulary.LETTER0, length)
        put(vocabulary.EOS)
        return tokens_NT

    def _strings(self, stream: int, held_out: bool, length: int, index_N: np.ndarray) -> np.ndarray:
        """letters_NL, uniform over the strings of the right part, by redrawing those of the wrong one."""
        base = np.uint64(vocabulary.ALPHABET)
        code_N = rng.random_bits(stream, index_N) % base ** np.uint64(length)
        wrong = np.flatnonzero(_held_out(code_N, length) != held_out)
        attempt = 0
        while len(wrong):
            attempt += 1
            code_N[wrong] = rng.random_bits(stream, index_N[wrong], slot=attempt) % base ** np.uint64(length)
            wrong = wrong[_held_out(code_N[wrong], length) != held_out]
        letters_NL = np.empty((len(index_N), length), dtype=np.uint8)
        for position in range(length):
            code_N, letters_NL[:, position] = np.divmod(code_N, base)
        return letters_NL


def _held_out(code_N: np.ndarray, length: int) -> np.ndarray:
    """Whether a string (as a base-26 number) is a test string. Fixed for ever: it depends on no seed."""
    return rng.random_bits(rng.stream_key("held out", length), code_N) % np.uint64(HELD_OUT_ONE_IN) == 0


def _chosen(stream: int, index_N: np.ndarray, length: int, count: int) -> np.ndarray:
    """bool [N, L] with ``count`` random positions set in each row."""
    slots = index_N[:, None].astype(np.uint64) * np.uint64(length) + np.arange(length, dtype=np.uint64)
    rank_NL = np.argsort(np.argsort(rng.random_bits(rng.stream_key(stream, "foreign"), slots), axis=1), axis=1)
    return rank_NL < count


def _edge_list(stream: int, index_N: np.ndarray, next_NV: np.ndarray, cell: Cell) -> np.ndarray:
    """The map as letters ``from to from to ...`` in random order, for the alphabets that the string uses."""
    size = vocabulary.ALPHABET
    first, last = (0, size) if cell.foreign == 0 else (size, 2 * size) if cell.foreign == cell.length else (0, 2 * size)
    width = last - first
    slots = index_N[:, None].astype(np.uint64) * np.uint64(2 * size) + np.arange(width, dtype=np.uint64)
    source_NE = first + np.argsort(rng.random_bits(rng.stream_key(stream, "edges"), slots), axis=1)
    pairs = np.stack([source_NE, np.take_along_axis(next_NV, source_NE, axis=1)], axis=2)
    return pairs.reshape(len(index_N), 2 * width).astype(np.uint8)
