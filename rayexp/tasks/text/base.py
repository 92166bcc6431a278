"""Tasks of text. A subclass gives one question by its number; ``TextTask`` samples, holds out, pads and judges.

A sample is ``<bos>``, the question, a line break, the answer and ``<eos>``. With the tokens of a pretrained model it
has that model's own format.
"""

import hashlib
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, count, islice, repeat
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from rayexp import rng
from rayexp.config import Count
from rayexp.tasks.base import HELD_OUT_ONE_IN, TEST_SEED, Solution, Task, TokenBatch, Verdict, require_split
from rayexp.tasks.text.model_tokens import ModelTokens
from rayexp.tasks.text.vocabularies import VOCABULARIES, Characters, Words

#: Questions of a cell from which the lengths of its prompts and completions are taken. A longer question, fewer than
#: one in a thousand, is drawn again.
PROBED = 1_000
#: Questions that are drawn for one sample before the search fails, because the cell has too few different ones.
ATTEMPTS = 10_000
#: Random numbers that are drawn at once.
AT_ONCE = 256
#: Lengths up to which rows share a batch. Each is 15 % above the one before, so there is little padding.
WIDTHS = tuple(accumulate(repeat(8, 60), lambda width, _: int(width * 1.15)))


class Question(NamedTuple):
    """A question and its answer, as text. template: its template, if results are to be grouped by template."""

    prompt: str
    answer: str
    template: str = ""


class _Sample(NamedTuple):
    """A question and its answer as tokens."""

    prompt: list[int]
    completion: list[int]
    template: str


class _Lengths(NamedTuple):
    prompt: int
    completion: int


#: Lengths by cell, and words, of every probed task: a cache, because equal tasks are parsed again and again.
_PROBED: dict[str, dict[str, _Lengths]] = {}
_WORDS: dict[str, Words] = {}


class TextTask(Task):
    """Questions of text, each with one right answer.

    Subclasses add ``kind`` and settings, and implement ``label``, ``cells`` and ``question``. Questions are held out by
    a hash of their text. Those of the split ``test`` are all different. tokens: unit of a token: a character of
    printable ASCII, a byte of UTF-8, or a word of the first ``PROBED`` questions of each cell; or the tokens of a
    pretrained model. answer_tokens: most tokens of a sampled answer, if other answers than the gold one may be right;
    by default, and at least, the length of the longest gold answer.
    """

    from_outside: ClassVar[bool] = True
    fields_added_later: ClassVar[frozenset[str]] = frozenset({"answer_tokens"})
    answer_tokens: Count | None = None
    tokens: Literal["characters", "bytes", "words"] | ModelTokens = "characters"

    @abstractmethod
    def question(self, cell: str, number: int) -> Question:
        """Return a question of a cell, as a pure function of the number, which is below 2^62.

        Most numbers should give different questions. The task decides how often each question occurs.
        """

    @property
    def vocabulary(self) -> Characters:
        if isinstance(self.tokens, ModelTokens):
            return self.tokens.vocabulary
        return self._words if self.tokens == "words" else VOCABULARIES[self.tokens]

    def prompt_tokens(self, cell: str) -> int:
        """Return the length of the longest prompt among the first ``PROBED`` of a cell."""
        return self._lengths[cell].prompt

    def completion_tokens(self, cell: str) -> int:
        """Return the length of the longest completion among the first ``PROBED`` of a cell."""
        return self._lengths[cell].completion

    def max_completion_tokens(self, cell: str) -> int:
        return max(self.completion_tokens(cell), self.answer_tokens or 0)

    def batches(self, split: str, seed: int, assigned: Sequence[tuple[str, np.ndarray]]) -> list[TokenBatch]:
        """See ``Task.batches``. Rows that fit the same of ``WIDTHS`` are padded to the longest of them."""
        require_split(split)
        ood = set(self.cells("ood"))
        by_width: dict[int, list[tuple[_Sample, int, bool]]] = {}
        for cell, index_N in assigned:
            for index, sample in zip(index_N.tolist(), self._drawn(split, seed, cell, index_N), strict=True):
                length = len(sample.prompt) + len(sample.completion)
                width = WIDTHS[bisect_left(WIDTHS, length, hi=len(WIDTHS) - 1)]  # the last takes all that are longer
                by_width.setdefault(width, []).append((sample, index, cell in ood))
        batches = []
        for _, group in sorted(by_width.items()):
            samples, indices, are_ood = zip(*group, strict=True)
            tokens = [(sample.prompt, sample.completion) for sample in samples]
            batches.append(TokenBatch.of(tokens, np.array(indices), np.array(are_ood)))
        return batches

    def test_samples(self, cell: str, most: int) -> int:
        """See ``Task.test_samples``. Return the number of different questions, at most ``most``."""
        return self._asked(TEST_SEED, cell, most)

    def templates_of(self, cell: str, index_N: np.ndarray) -> list[str]:
        """See ``Task.templates_of``."""
        found = [self._test_sample(TEST_SEED, cell, index).template for index in index_N.tolist()]
        return found if any(found) else []

    @property
    def unique(self) -> bool:
        """See ``Task.unique``. False if a text ends answers, because the last token may have more text after it."""
        return not (isinstance(self.tokens, ModelTokens) and self.tokens.end)

    def solution(self, prompt: Sequence[int], gold: Sequence[int]) -> Solution:
        """See ``Task.solution``. Return the gold completion itself."""
        return Solution(tuple(gold), (tuple(gold[:-1]),))

    def right(self, gold: str, written: str) -> bool:
        """Return whether a written answer is right: here, if it equals the gold one. A task that overrides this method
        is not ``unique``."""
        return written == gold

    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        """See ``Task.judge``. An answer is compared as text, and is wrong if it does not end."""
        whole, vocabulary = tuple(completion) == solution.completion, self.vocabulary
        gold, written = (vocabulary.answer(tokens) for tokens in (solution.completion, completion))
        answer = vocabulary.end_of(completion) == len(completion) and self.right(gold, written)
        return Verdict(answer=answer, trace=whole, steps_right=int(answer), steps=1)

    @cached_property
    def _key(self) -> str:
        return f"{type(self).__module__}:{type(self).__qualname__} {self.model_dump_json()}"

    @cached_property
    def _words(self) -> Words:
        if self._key not in _WORDS:
            questions = (question for _, cell in self.roles() for question in self._probed(cell))
            _WORDS[self._key] = Words.of(text for each in questions for text in (each.prompt, each.answer))
        return _WORDS[self._key]

    @cached_property
    def _lengths(self) -> dict[str, _Lengths]:
        if self._key not in _PROBED:
            _PROBED[self._key] = {cell: self._longest(cell) for _, cell in self.roles()}
        return _PROBED[self._key]

    def _longest(self, cell: str) -> _Lengths:
        samples = [self._written(question) for question in self._probed(cell)]
        return _Lengths(*(max(len(sample[part]) for sample in samples) for part in range(2)))

    def _probed(self, cell: str) -> Iterable[Question]:
        """Return the questions of a cell from which its lengths are taken."""
        return islice(self._stream(cell, rng.stream_key("lengths", cell)), PROBED)

    def _drawn(self, split: str, seed: int, cell: str, index_N: np.ndarray) -> list[_Sample]:
        """Return the samples of a cell with these numbers. Raises ValueError if it has too few questions."""
        if split == "test":
            return [self._test_sample(seed, cell, index) for index in index_N.tolist()]
        stream, found, attempt = rng.stream_key(seed, split, cell), dict[int, _Sample](), 0
        left_N = index_N
        while len(left_N):
            numbers = (rng.random_bits(stream, left_N, slot=attempt) >> np.uint64(2)).tolist()
            for index, number in zip(left_N.tolist(), numbers, strict=True):
                question = self.question(cell, number)
                if not held_out(question.prompt) and (sample := self._fitting(cell, question)):
                    found[index] = sample
            left_N = np.array([index for index in left_N.tolist() if index not in found], dtype=np.int64)
            attempt += 1
            if attempt == ATTEMPTS:
                raise ValueError(
                    f"{ATTEMPTS} draws from the cell {cell} of {self.label} gave only questions that are held out for "
                    "tests, or too long; add questions to the cell"
                )
        return [found[index] for index in index_N.tolist()]

    @cached_property
    def _tests(self) -> dict[tuple[int, str], tuple[list[_Sample], Iterator[_Sample]]]:
        """Return a cache: by seed and cell, the test samples so far and an iterator of further ones."""
        return {}

    def _test_sample(self, seed: int, cell: str, index: int) -> _Sample:
        """Return number ``index`` of the different held-out questions, in the order in which they are drawn."""
        if (there := self._asked(seed, cell, index + 1)) <= index:
            raise ValueError(
                f"the cell {cell} of {self.label} has {there} different test questions, and number {index + 1} was "
                f"requested; set prompts_per_cell to {there} or less, or choose settings with more questions"
            )
        return self._tests[seed, cell][0][index]

    def _asked(self, seed: int, cell: str, most: int) -> int:
        """Return the number of different test questions of a cell, at most ``most``, and cache these questions."""
        if (seed, cell) not in self._tests:
            self._tests[seed, cell] = ([], self._different(seed, cell))
        found, more = self._tests[seed, cell]
        found.extend(islice(more, max(0, most - len(found))))
        return min(len(found), most)

    def _different(self, seed: int, cell: str) -> Iterator[_Sample]:
        """Yield different held-out questions, until ``ATTEMPTS`` draws in a row give no new one."""
        seen, fruitless = set[str](), 0
        for question in self._stream(cell, rng.stream_key(seed, "test", cell)):
            fruitless += 1
            if held_out(question.prompt) and question.prompt not in seen and (sample := self._fitting(cell, question)):
                seen.add(question.prompt)
                fruitless = 0
                yield sample
            if fruitless >= ATTEMPTS:
                return

    def _stream(self, cell: str, stream: int) -> Iterator[Question]:
        """Yield the questions of an endless stream of random numbers."""
        for start in count(step=AT_ONCE):
            numbers = rng.random_bits(stream, np.arange(start, start + AT_ONCE)) >> np.uint64(2)
            for number in numbers.tolist():
                yield self.question(cell, number)

    def _fitting(self, cell: str, question: Question) -> _Sample | None:
        """Return a question as tokens; None if it is longer than all probed ones."""
        sample, lengths = self._written(question), self._lengths[cell]
        fits = len(sample.prompt) <= lengths.prompt and len(sample.completion) <= lengths.completion
        return sample if fits else None

    def _written(self, question: Question) -> _Sample:
        prompt, answer = self.vocabulary.prompt(question.prompt), self.vocabulary.completion(question.answer)
        return _Sample(prompt, answer, question.template)


def held_out(prompt: str) -> bool:
    """Return whether a question is held out for tests: one in ten, by a hash of its text."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8, person=b"held out").digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0
