"""The contract of ``Task``, checked on some samples of every cell. A user's task is checked before any work."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from rayexp.errors import defined_at, located
from rayexp.tasks.base import SPLITS, Task

SAMPLES = 128


class ContractError(ValueError):
    """A task that breaks the contract of ``Task``. The message is one sentence with the task's file and line."""


def require_contract(task: Task) -> None:
    """Raise ContractError with the first rule of the contract that a task breaks."""
    with _of(task):
        _require_names(task)
        questions: dict[tuple[int, ...], tuple[str, str]] = {}
        for split in SPLITS:
            for _, cell in task.roles():
                there = task.test_samples(cell, SAMPLES) if split == "test" else SAMPLES
                _require(there > 0, f"its cell {cell!r} has no test question; give it more, so that some are held out")
                prompts = _samples(task, split, cell, there)
                _require_solved(task, split, cell, min(there, 8))
                for prompt in prompts:
                    held, where = split == "test", questions.setdefault(tuple(prompt), (split, cell))
                    shown = f"the question {task.vocabulary.decode(prompt)!r}"
                    _require(
                        where[1] == cell, f"its cells {where[1]!r} and {cell!r} share {shown}; keep it in one of them"
                    )
                    _require(
                        (where[0] == "test") == held,
                        f"{shown} is in the splits {where[0]!r} and {split!r}; hold test questions out of all others",
                    )


def _require_names(task: Task) -> None:
    cells = [cell for _, cell in task.roles()]
    _require(isinstance(task.label, str) and task.label and "/" not in task.label, "its label is empty or has a /")
    _require(bool(task.cells("id")), "it has no cell of the role id")
    _require(len(set(cells)) == len(cells), f"it has a cell twice: {', '.join(cells)}")


def _samples(task: Task, split: str, cell: str, count: int) -> list[list[int]]:
    """Return prompts of a cell. Check that its samples have valid lengths and tokens, and are the same each time."""
    batch, where = task.of_cell(split, 0, cell, 0, count), f"sample of the split {split!r} and the cell {cell!r}"
    tokens_NT, shape = batch.tokens_NT, (count, int(batch.length_N.max()))
    _require(
        tokens_NT.shape == shape,
        f"tokens_NT has the shape {tokens_NT.shape} and should have {shape}: a row for each {where}, as wide as the "
        "longest",
    )
    _require(np.issubdtype(tokens_NT.dtype, np.integer), f"tokens are {tokens_NT.dtype}, which are no token ids")
    for what, length_N, longest in (
        ("prompt", batch.prompt_tokens_N, task.prompt_tokens(cell)),
        ("completion", batch.length_N - batch.prompt_tokens_N, task.completion_tokens(cell)),
    ):
        _require(1 <= length_N.min() <= length_N.max() <= longest, f"a {what} is longer than {longest}, in a {where}")
    symbols = len(task.vocabulary.symbols)
    _require(
        0 <= tokens_NT.min() <= tokens_NT.max() < symbols, f"a token is none of its {symbols} symbols, in a {where}"
    )
    again = task.of_cell(split, 0, cell, count // 2, count - count // 2)
    same = again.prompts + again.completions == batch.prompts[count // 2 :] + batch.completions[count // 2 :]
    _require(same, f"a {where} changes with the samples beside it; let it depend on its own index alone")
    return batch.prompts


def _require_solved(task: Task, split: str, cell: str, count: int) -> None:
    """Check that the solver gives the gold completions of a cell, and that only complete ones are judged right."""
    batch = task.of_cell(split, 0, cell, 0, count)
    for prompt, gold in zip(batch.prompts, batch.completions, strict=True):
        shown, solution = f"the question {task.vocabulary.decode(prompt)!r}", task.solution(prompt, gold)
        _require(task.vocabulary.end_of(gold) == len(gold), f"the completion of {shown} does not end with <eos>")
        _require(list(solution.completion) == gold, f"solve and write do not agree on {shown}")
        _require(task.judge(solution, gold).answer, f"judge does not take the gold completion of {shown} for right")
        _require(not task.judge(solution, gold[:-1]).answer, f"judge takes {shown} for answered without <eos>")


def _require(kept: object, else_what: str) -> None:
    if not kept:
        raise ContractError(else_what)


@contextmanager
def _of(task: Task) -> Iterator[None]:
    """Turn every error of the block into a ContractError with one sentence about the task."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"the task {task.kind} can't be used: {error} ({defined_at(type(task))})") from error
    except Exception as error:
        raise ContractError(f"the task {task.kind} can't be used: {located(error)}") from error
