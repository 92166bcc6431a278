"""The interface of tasks, through which the rest of the project uses them.

A task is a family of prompts whose completions can be verified. Its prompts are divided into cells, and each cell has a
role. Pretraining always has samples of ``id`` cells, a share ``ood_ratio`` of samples of ``ood`` cells, and none of
``probe`` cells. Sample i of a cell is a pure function of (seed, split, i): no data file, no loader state. Questions are
held out by a hash: those of the split ``test`` are in no other split, whatever the seed.

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
#: Column of results with the template of a question, if its task has templates.
TEMPLATE = "template"
#: Seed of the test prompts. It is the same for all stages, so that results can be paired across stages.
TEST_SEED = 0


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a task, one token each; the first three are ``<pad>``, ``<bos>`` and ``<eos>``.

    units: the kind of a symbol: a word between blanks, a character, a byte of UTF-8, or a token of the vocabulary's own
    ``tokenizer``. size: rows of the embedding table, a multiple of 64 because GPUs are faster on such shapes.
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
        """Return the symbols of token ids, blank-separated. An embedding row without a symbol gives ``<unused>``."""
        return " ".join(self.symbols[token] if token < len(self.symbols) else "<unused>" for token in tokens)

    def end_of(self, completion: Sequence[int]) -> int | None:
        """Return the number of tokens of a completion up to and including its end, ``<eos>``; None if it does not
        end."""
        return completion.index(self.eos) + 1 if self.eos in completion else None


@dataclass(frozen=True)
class TokenBatch:
    """Samples as rows. Shorter rows are padded on the right; causal attention never reads the padding."""

    tokens_NT: np.ndarray  # unsigned integers
    prompt_tokens_N: np.ndarray  # int64; the completion follows
    length_N: np.ndarray  # int64, tokens of prompt and completion
    index_N: np.ndarray  # int64, number of the sample in its split
    ood_N: np.ndarray  # bool, whether the sample is of an OOD cell
    positions_NT: np.ndarray | None = None  # float32, positions of the tokens; None: 0, 1, 2, ...

    @classmethod
    def of(
        cls,
        samples: Sequence[tuple[Sequence[int], Sequence[int]]],
        index_N: np.ndarray,
        ood_N: np.ndarray | None = None,
        pad: int = 0,
    ) -> "TokenBatch":
        """Return samples, given as (prompt, completion), as rows. ood_N: whether each is of an OOD cell; by default
        none."""
        prompt_tokens_N = np.array([len(prompt) for prompt, _ in samples])
        length_N = prompt_tokens_N + [len(completion) for _, completion in samples]
        tokens_NT = np.full((len(samples), int(length_N.max(initial=0))), pad, dtype=np.uint32)
        for row_T, length, (prompt, completion) in zip(tokens_NT, length_N, samples, strict=True):
            row_T[:length] = [*prompt, *completion]
        ood_N = np.zeros(len(samples), dtype=bool) if ood_N is None else ood_N
        return cls(tokens_NT, prompt_tokens_N, length_N, index_N, ood_N)

    @classmethod
    def joined(cls, batches: "Sequence[TokenBatch]") -> "TokenBatch":
        """Return the rows of several batches, ordered by their numbers."""
        if len(batches) == 1:
            return batches[0]
        width = max(batch.tokens_NT.shape[1] for batch in batches)
        wide = [np.pad(batch.tokens_NT, ((0, 0), (0, width - batch.tokens_NT.shape[1]))) for batch in batches]
        names = ("prompt_tokens_N", "length_N", "index_N", "ood_N")
        joined = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
        return cls(np.concatenate(wide), **joined).take(np.argsort(joined["index_N"], kind="stable"))

    @property
    def prompts(self) -> list[list[int]]:
        """Return the prompt of each row."""
        return [row_T[:prompt].tolist() for row_T, prompt in zip(self.tokens_NT, self.prompt_tokens_N, strict=True)]

    @property
    def completions(self) -> list[list[int]]:
        """Return the gold completion of each row, ``<eos>`` included."""
        ends = zip(self.tokens_NT, self.prompt_tokens_N, self.length_N, strict=True)
        return [row_T[prompt:length].tolist() for row_T, prompt, length in ends]

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all rows, without padding."""
        return int(self.length_N.sum())

    def counted_NT(self, start_N: np.ndarray) -> np.ndarray:
        """Return a mask of the tokens of each row from ``start_N`` on, without padding: bool [N, T]."""
        place_T = np.arange(self.tokens_NT.shape[1])
        return (place_T >= start_N[:, None]) & (place_T < self.length_N[:, None])

    def take(self, rows: slice | np.ndarray) -> "TokenBatch":
        """Return some rows; may be empty."""
        arrays = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: array[rows] for name, array in arrays.items() if array is not None})

    def shard(self, rank: int, ranks: int) -> "TokenBatch":
        """Return every ``ranks``-th row from row ``rank`` on; may be empty."""
        return self.take(slice(rank, None, ranks))

    def pieces(self, tokens: int | None) -> "list[TokenBatch]":
        """Split the rows into as few micro-batches as possible. tokens: most tokens of a micro-batch, padding included,
        unless it has only one row; None: one micro-batch."""
        rows, width = self.tokens_NT.shape
        if tokens is None or rows * width <= tokens:
            return [self]
        size = max(1, tokens // width)
        return [self.take(slice(start, start + size)) for start in range(0, rows, size)]


@dataclass(frozen=True)
class Solution:
    """The gold completion of a prompt, ``<eos>`` included, and the tokens of each of its steps."""

    completion: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Verdict:
    """The judgement of a completion. answer: the final answer is right and ends with ``<eos>``. steps_right: number of
    right steps, of the solution's ``steps``, before the first wrong one. trace: every step is right, and nothing else
    was written."""

    answer: bool
    trace: bool
    steps_right: int
    steps: int


class Task(Part):
    """A family of prompts with verifiable completions. Equal tasks generate equal samples.

    Subclasses add ``kind`` (a literal) and their settings, and implement the abstract methods; the other methods follow
    from those. Most subclasses derive from ``FixedLengthTask`` or ``text.TextTask``.
    """

    #: True if its questions come from a source that the user chose. Its contract is then checked before work.
    from_outside: ClassVar[bool] = False

    def mixture(self, split: str, seed: int, ood_ratio: float, start: int, count: int) -> list[TokenBatch]:
        """Return samples ``start .. start+count`` of a mixture of ID cells and a share ``ood_ratio`` of OOD cells.

        The share r is exact in every prefix: sample i is OOD if floor((i+1) r) > floor(i r). So is the balance of cells
        within each role. Sample i of the mixture is sample i of its cell, so mixtures of two ratios differ only in
        cells.
        """
        before_N = np.floor(np.arange(start, start + count + 1, dtype=np.int64) * ood_ratio).astype(np.int64)
        return self.mixed(split, seed, start, before_N)

    def mixed(self, split: str, seed: int, start: int, ood_before_N: np.ndarray) -> list[TokenBatch]:
        """Return samples from ``start`` on, of which ``ood_before_N`` says which are OOD. Within each role cells
        alternate, and sample i is sample i of its cell.

        ood_before_N: [N + 1], the number of OOD samples of the split before sample start, start + 1, ..., start + N.
        """
        before_N, ood_N = ood_before_N[:-1], np.diff(ood_before_N) > 0
        index_N = start + np.arange(len(before_N), dtype=np.int64)
        of_id = in_turn(self.cells("id"), (index_N - before_N)[~ood_N], index_N[~ood_N])
        return self.batches(split, seed, of_id + in_turn(self.cells("ood"), before_N[ood_N], index_N[ood_N]))

    def of_role(self, split: str, seed: int, role: str, index_N: np.ndarray) -> list[TokenBatch]:
        """Return samples ``index_N`` of the cells of one role. Sample i is of cell i modulo the number of cells."""
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
        """Return the role and the name of every cell, ID first."""
        return [(role, cell) for role in ROLES for cell in self.cells(role)]

    def example(self, split: str, seed: int, cell: str) -> tuple[list[int], Solution]:
        """Return the first prompt of a cell and its solution."""
        batch = self.of_cell(split, seed, cell, 0, 1)
        (prompt,), (gold,) = batch.prompts, batch.completions
        return prompt, self.solution(prompt, gold)

    def test_samples(self, cell: str, most: int) -> int:
        """Return the number of test samples that a cell has, at most ``most``."""
        return most

    def templates_of(self, cell: str, index_N: np.ndarray) -> list[str]:
        """Return the template of each of these test samples of a cell; an empty list if its questions have none."""
        return []

    def max_completion_tokens(self, cell: str) -> int:
        """Return the largest number of tokens that a sampler may write for a cell."""
        return self.completion_tokens(cell)

    @property
    def max_tokens(self) -> int:
        """Return the largest number of tokens of a prompt with its completion, over all cells."""
        return max(self.prompt_tokens(cell) + self.max_completion_tokens(cell) for _, cell in self.roles())

    @property
    def unique(self) -> bool:
        """Return whether the gold completion is the only right one. If so its mass is Q, else a lower bound of Q."""
        return True

    # Abstract methods, which each task implements

    @property
    @abstractmethod
    def label(self) -> str:
        """Return a short label for people, without ``/``."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Return its symbols."""

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
        """Return the samples with these numbers of each cell. Batch similar lengths together, shortest first."""

    @abstractmethod
    def solution(self, prompt: Sequence[int], gold: Sequence[int]) -> Solution:
        """Return the solution by which the completions of a prompt are judged."""

    @abstractmethod
    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        """Compare a completion (token ids up to and including ``<eos>``) with the solution of its prompt."""


class FixedLengthTask(Task):
    """A task whose samples of a cell all have ``prompt_tokens`` and ``completion_tokens`` tokens."""

    def batches(self, split: str, seed: int, assigned: Sequence[tuple[str, np.ndarray]]) -> list[TokenBatch]:
        """See ``Task.batches``. Samples of one shape make one batch, without padding."""
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
        """Return the samples ``index_N`` of one cell as tokens_NT, each a prompt and its gold completion."""

    def solution(self, prompt: Sequence[int], gold: Sequence[int]) -> Solution:
        """See ``Task.solution``. Solve the prompt without the gold completion, so that an error in either is found."""
        return self.solve(prompt)

    @abstractmethod
    def solve(self, prompt: Sequence[int]) -> Solution:
        """Solve a prompt without the code that wrote it. Raises ValueError on a malformed prompt."""


def in_turn(cells: Sequence[str], ordinal_N: np.ndarray, index_N: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Deal the samples ``index_N`` to cells in turn. Return the samples of each cell that gets any.

    ordinal_N: place n of each sample among all samples of these cells; it goes to cell n modulo the number of cells.
    """
    dealt = [(cell, index_N[ordinal_N % len(cells) == position]) for position, cell in enumerate(cells)]
    return [(cell, rows) for cell, rows in dealt if len(rows)]


def require_split(split: str) -> None:
    """Raise ValueError unless a name is one of ``SPLITS``."""
    if split not in SPLITS:
        raise ValueError(not_among("split", split, SPLITS))


def draw_questions(family: tuple[str, int], count: int, split: str, seed: int, index_N: np.ndarray) -> np.ndarray:
    """Return the questions of samples ``index_N`` as numbers below ``count``, uint64.

    One question in ten is held out, by a hash of its number and its family, such as (kind, length). The split ``test``
    draws uniformly from these, and every other split from the rest.
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
