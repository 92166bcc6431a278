"""Sorting digits: the whole of a small task, as an example of how one is written (docs/add-a-task.md)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rayexp.tasks.base import FixedLengthTask, Solution, Verdict, Vocabulary, draw_questions

DIGITS = 10
VOCABULARY = Vocabulary(("<pad>", "<bos>", "<eos>", "=", *map(str, range(DIGITS))))
EQUALS, DIGIT0 = 3, 4
#: Numbers of digits to sort, by role: three and four are ID, five are OOD, six are never trained on.
LENGTHS = {"id": (3, 4), "ood": (5,), "probe": (6,)}


class Sorting(FixedLengthTask):
    """``<bos> 3 1 2 =`` is completed by ``1 2 3 <eos>``. A cell is a number of digits."""

    kind: Literal["sorting"] = "sorting"

    @property
    def label(self) -> str:
        return "sorting"

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARY

    def cells(self, role: str) -> tuple[str, ...]:
        return tuple(map(str, LENGTHS[role]))

    def prompt_tokens(self, cell: str) -> int:
        return 1 + int(cell) + 1

    def completion_tokens(self, cell: str) -> int:
        return int(cell) + 1

    def write(self, split: str, seed: int, cell: str, index_N: np.ndarray) -> np.ndarray:
        """Return ``<bos> digits = sorted digits <eos>``; equal digits are allowed."""
        length, rows = int(cell), len(index_N)
        code_N = draw_questions(("sorting", length), DIGITS**length, split, seed, index_N)
        digits_NL = (code_N[:, None] // DIGITS ** np.arange(length, dtype=np.uint64) % DIGITS).astype(np.uint8)
        column = np.ones((rows, 1), dtype=np.uint8)
        parts = [
            VOCABULARY.bos * column,
            digits_NL + DIGIT0,
            EQUALS * column,
            np.sort(digits_NL, axis=1) + DIGIT0,
            VOCABULARY.eos * column,
        ]
        return np.concatenate(parts, axis=1, dtype=np.uint8)

    def solve(self, prompt: Sequence[int]) -> Solution:
        tokens = [int(token) for token in prompt]
        digits = tokens[1:-1]
        framed = len(tokens) > 2 and tokens[0] == VOCABULARY.bos and tokens[-1] == EQUALS
        if not framed or not all(DIGIT0 <= token < DIGIT0 + DIGITS for token in digits):
            raise ValueError(f"not a prompt of this task: {VOCABULARY.decode(tokens)}")
        answer: list[int] = []
        for token in digits:  # insertion sort, because the generator sorts arrays
            place = sum(other <= token for other in answer)
            answer.insert(place, token)
        return Solution((*answer, VOCABULARY.eos), (tuple(answer),))

    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        right = tuple(completion) == solution.completion
        return Verdict(answer=right, trace=right, steps_right=int(right), steps=1)
