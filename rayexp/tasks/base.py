"""The seam for tasks: all that the rest of the project knows of one.

A task is a family of prompts whose completions can be verified. Its prompts are cut into cells, and each cell has a
role: ``id`` cells are always in pretraining, ``ood`` cells at the share ``ood_ratio``, ``probe`` cells never. Sample i
of a cell is a pure function of (seed, split, i): no data file, no loader state. Questions are held out by hash: those
of the split ``test`` are in no other split, whatever the seed.

Shape suffixes: _N samples, _T tokens.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from rayexp import rng
from rayexp.errors import not_among
from rayexp.parts import Part

ROLES = ("id", "ood", "probe")
SPLITS = ("pretrain", "sft", "grpo", "test")
HELD_OUT_ONE_IN = 10
#: Column of results that has the template of a question, if its task has such.
TEMPLATE = "template"
#: Test prompts are those of one seed, whatever the seeds of the stages are: results are paired across stages.
TEST_SEED = 0


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a task, one token each; the first three are ``<pad>``, ``<bos>`` and ``<eos>``.

    units: what of a text is a symbol: what stands between blanks, a character, a byte of UTF-8, or what a tokenizer of
    its own (``tokenizer``) makes of it. size: rows of the embedding table, a multiple of 64, which is a friendlier
    shape for GPUs.
    """

    units: ClassVar[Literal["words", "characters", "bytes"]] = "words"
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

    def end_of(self, completion: Sequence[int]) -> int | None:
        """Return how many tokens of a completion there are up to its end, which is ``<eos>``; None for one that does
        not end."""
        return completion.index(self.eos) + 1 if self.eos in completion else None


@dataclass(frozen=True)
class TokenBatch:
    """Samples as rows, the shorter ones padded on the right, where causal attention never looks."""

    tokens_NT: np.ndarray  # unsigned integers
    prompt_tokens_N: np.ndarray  # int64; the completion follows
    length_N: np.ndarray  # int64, tokens of prompt and completion
    index_N: np.ndarray  # int64, the sample's number in its split
    ood_N: np.ndarray  # bool, whether the sample is of an OOD cell
    positions_NT: np.ndarray | None = None  # float32, where the tokens stand; None: at 0, 1, 2, ...

    @classmethod
    def of(
        cls,
        samples: Sequence[tuple[Sequence[int], Sequence[int]]],
        index_N: np.ndarray,
        ood_N: np.ndarray | None = None,
        pad: int = 0,
    ) -> "TokenBatch":
        """Return samples as rows, each from its prompt and completion; of OOD cells are those that ``ood_N`` says."""
        prompt_tokens_N = np.array([len(prompt) for prompt, _ in samples])
        length_N = prompt_tokens_N + [len(completion) for _, completion in samples]
        tokens_NT = np.full((len(samples), int(length_N.max(initial=0))), pad, dtype=np.uint32)
        for row_T, length, (prompt, completion) in zip(tokens_NT, length_N, samples, strict=True):
            row_T[:length] = [*prompt, *completion]
        ood_N = np.zeros(len(samples), dtype=bool) if ood_N is None else ood_N
        return cls(tokens_NT, prompt_tokens_N, length_N, index_N, ood_N)

    @classmethod
    def joined(cls, batches: "Sequence[TokenBatch]") -> "TokenBatch":
        """Return the rows of several batches in the order of their numbers."""
        if len(batches) == 1:
            return batches[0]
        width = max(batch.tokens_NT.shape[1] for batch in batches)
        wide = [np.pad(batch.tokens_NT, ((0, 0), (0, width - batch.tokens_NT.shape[1]))) for batch in batches]
        names = ("prompt_tokens_N", "length_N", "index_N", "ood_N")
        joined = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
        return cls(np.concatenate(wide), **joined).take(np.argsort(joined["index_N"], kind="stable"))

    @property
    def prompts(self) -> list[list[int]]:
        """The prompt of each row."""
        return [row_T[:prompt].tolist() for row_T, prompt in zip(self.tokens_NT, self.prompt_tokens_N, strict=True)]

    @property
    def completions(self) -> list[list[int]]:
        """The gold completion of each row, ``<eos>`` included."""
        ends = zip(self.tokens_NT, self.prompt_tokens_N, self.length_N, strict=True)
        return [row_T[prompt:length].tolist() for row_T, prompt, length in ends]

    @property
    def tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return int(self.length_N.sum())

    def counted_NT(self, start_N: np.ndarray) -> np.ndarray:
        """Return which tokens there are from ``start_N`` of each row on: bool [N, T]."""
        place_T = np.arange(self.tokens_NT.shape[1])
        return (place_T >= start_N[:, None]) & (place_T < self.length_N[:, None])

    def take(self, rows: slice | np.ndarray) -> "TokenBatch":
        """Return some of its rows; may be empty."""
        arrays = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: array[rows] for name, array in arrays.items() if array is not None})

    def shard(self, rank: int, ranks: int) -> "TokenBatch":
        """Return every ``ranks``-th row from row ``rank`` on; may be empty."""
        return self.take(slice(rank, None, ranks))

    def pieces(self, tokens: int | None) -> "list[TokenBatch]":
        """Return its rows in as few pieces as have no more tokens each, padding included; a piece has a row at least.
        None: in one piece."""
        rows, width = self.tokens_NT.shape
        if tokens is None or rows * width <= tokens:
            return [self]
        size = max(1, tokens // width)
        return [self.take(slice(start, start + size)) for start in range(0, rows, size)]


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
    it follows from those. Most start from ``FixedLengthTask`` or from ``text.TextTask``.
    """

    #: True if its questions come from something that the user chose; it is held to its contract before work.
    from_outside: ClassVar[bool] = False

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
        of_id = in_turn(self.cells("id"), (index_N - before_N)[~ood_N], index_N[~ood_N])
        return self.batches(split, seed, of_id + in_turn(self.cells("ood"), before_N[ood_N], index_N[ood_N]))

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
        return TokenBatch.joined(self.batches(split, seed, [(cell, np.arange(start, start + count, dtype=np.int64))]))

    def roles(self) -> list[tuple[str, str]]:
        """Return every cell with its role, ID first."""
        return [(role, cell) for role in ROLES for cell in self.cells(role)]

    def example(self, split: str, seed: int, cell: str) -> tuple[list[int], Solution]:
        """Return the first prompt of a cell, and its solution."""
        batch = self.of_cell(split, seed, cell, 0, 1)
        (prompt,), (gold,) = batch.prompts, batch.completions
        return prompt, self.solution(prompt, gold)

    def test_samples(self, cell: str, most: int) -> int:
        """Return how many samples a cell has for tests, at most ``most``."""
        return most

    def templates_of(self, cell: str, index_N: np.ndarray) -> list[str]:
        """Return the template of each of these test samples of a cell; nothing where its questions have none."""
        return []

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
        """Return the length of the longest prompt of a cell."""

    @abstractmethod
    def completion_tokens(self, cell: str) -> int:
        """Return the length of the longest gold completion of a cell, ``<eos>`` included."""

    @abstractmethod
    def batches(self, split: str, seed: int, assigned: Sequence[tuple[str, np.ndarray]]) -> list[TokenBatch]:
        """Return the samples numbered for each cell, those of like lengths together, shortest first."""

    @abstractmethod
    def solution(self, prompt: Sequence[int], gold: Sequence[int]) -> Solution:
        """Return what the completions of a prompt are judged by, whose gold completion is given."""

    @abstractmethod
    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        """Compare a completion (token ids up to and including ``<eos>``) with the solution of its prompt."""


class FixedLengthTask(Task):
    """A task that writes all samples of a cell in as many tokens as ``prompt_tokens`` and ``completion_tokens`` say."""

    def batches(self, split: str, seed: int, assigned: Sequence[tuple[str, np.ndarray]]) -> list[TokenBatch]:
        """See ``Task.batches``: those of one shape together, without padding."""
        require_split(split)
        by_shape: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = {}
        for cell, rows in assigned:
            by_shape.setdefault((self.prompt_tokens(cell), self.completion_tokens(cell)), []).append((cell, rows))
        ood = set(self.cells("ood"))
        batches = []
        for (prompt, completion), group in sorted(by_shape.items()):
            index_N = np.concatenate([rows for _, rows in group])
            batches.append(
                TokenBatch(
                    tokens_NT=np.concatenate([self.write(split, seed, cell, rows) for cell, rows in group]),
                    prompt_tokens_N=np.full(len(index_N), prompt),
                    length_N=np.full(len(index_N), prompt + completion),
                    index_N=index_N,
                    ood_N=np.concatenate([np.full(len(rows), cell in ood) for cell, rows in group]),
                )
            )
        return batches

    @abstractmethod
    def write(self, split: str, seed: int, cell: str, index_N: np.ndarray) -> np.ndarray:
        """Return the samples numbered ``index_N`` of one cell: tokens_NT, prompt and gold completion."""

    def solution(self, prompt: Sequence[int], gold: Sequence[int]) -> Solution:
        """See ``Task.solution``: found anew, without the gold completion, so that an error of either shows."""
        return self.solve(prompt)

    @abstractmethod
    def solve(self, prompt: Sequence[int]) -> Solution:
        """Solve a prompt without the code that wrote it. Raises ValueError on a malformed prompt."""


def in_turn(cells: Sequence[str], ordinal_N: np.ndarray, index_N: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the samples ``index_N`` of each cell that has any, where cells take turns: sample n is of cell n modulo
    their number, by the place ``ordinal_N`` that it has among the samples of all of them."""
    dealt = [(cell, index_N[ordinal_N % len(cells) == position]) for position, cell in enumerate(cells)]
    return [(cell, rows) for cell, rows in dealt if len(rows)]


def require_split(split: str) -> None:
    """Raise ValueError on a name that is none of ``SPLITS``."""
    if split not in SPLITS:
        raise ValueError(not_among("split", split, SPLITS))


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
