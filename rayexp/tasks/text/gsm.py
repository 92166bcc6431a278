"""Word problems in natural language with worked chains: templates of GSM-Symbolic from reasoning-gym."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from random import Random
from typing import Any, Literal

from rayexp import rng
from rayexp.config import Count
from rayexp.tasks.base import Solution, Verdict
from rayexp.tasks.text.arithmetic import holds
from rayexp.tasks.text.base import Question
from rayexp.tasks.text.gym import OfRelease, quiet_import
from rayexp.tasks.text.model_tokens import ModelTokens
from rayexp.tasks.text.verifiers import MARK, final
from rayexp.tasks.text.vocabularies import BREAK

#: The cells of each axis, with their roles.
CELLS = {
    "depth": {"2-3": "id", "4": "ood", "5+": "probe"},
    "template": {"learnt": "id", "other": "ood"},
}
#: Templates of the axis ``template`` that are OOD.
OTHERS = 25
#: A template: a function that fills in a problem and its solution from random numbers.
Template = Callable[[Random, float], dict[str, Any]]


class GSMTask(OfRelease):
    """Problems of GSM8K with other names and numbers, answered by a chain of steps and ``####`` with the result.

    axis: ``depth``: chains of at most three steps are ID, of four OOD, and longer ones probes; or ``template``: 60 of
    the problems are ID and the 25 others OOD. templates: number of templates of each cell, for a small study; by
    default all. Many chains are right. An answer is judged by the text after its last ``####``, and a step by its
    equations. The mass of the gold chain is a lower bound of Q.
    """

    kind: Literal["gsm"] = "gsm"
    axis: Literal["depth", "template"]
    templates: Count | None = None
    tokens: Literal["characters", "bytes", "words"] | ModelTokens = "words"

    @property
    def label(self) -> str:
        return f"gsm-{self.axis}"

    @property
    def unique(self) -> bool:
        return False

    def cells(self, role: str) -> tuple[str, ...]:
        return tuple(cell for cell, of_role in CELLS[self.axis].items() if of_role == role)

    def question(self, cell: str, number: int) -> Question:
        """See ``TextTask.question``. The number selects a template and its content."""
        numbers, templates = self._templates[cell]
        which, filled = number % len(templates), number // len(templates)
        return _filled(templates[which], filled, str(numbers[which]))

    def right(self, gold: str, written: str) -> bool:
        """See ``TextTask.right``. Compare the results alone."""
        return final(gold, written)

    def solution(self, prompt: Sequence[int], gold: Sequence[int]) -> Solution:
        """See ``Task.solution``. A step is a line of the chain."""
        steps = _steps(self.vocabulary.answer(gold))
        return Solution(tuple(gold), tuple(tuple(self.vocabulary.plain(step)) for step in steps))

    def judge(self, solution: Solution, completion: Sequence[int]) -> Verdict:
        """See ``Task.judge``. A step is right if it is a line of the gold chain, or if all its equations hold."""
        vocabulary = self.vocabulary
        gold, text = (vocabulary.answer(tokens) for tokens in (solution.completion, completion))
        answer = vocabulary.end_of(completion) == len(completion) and self.right(gold, text)
        known, steps = set(_steps(gold)), len(solution.steps)
        right = [step in known or holds(step) for step in _steps(text)]
        prefix = next((place for place, kept in enumerate(right) if not kept), len(right))
        return Verdict(answer=answer, trace=answer and all(right), steps_right=min(prefix, steps), steps=steps)

    @cached_property
    def _templates(self) -> dict[str, tuple[list[int], list[Template]]]:
        self.require_release()
        taken = {cell: numbers[: self.templates] for cell, numbers in _numbers(self.axis).items()}
        return {cell: (numbers, _templates(numbers)) for cell, numbers in taken.items()}


def _steps(text: str) -> list[str]:
    """Return the lines of a chain without its result."""
    before, mark, rest = text.rpartition(MARK)
    return [line for line in (before if mark else rest).split(BREAK) if line.strip()]


@lru_cache
def _numbers(axis: str) -> dict[str, list[int]]:
    """Return the numbers of the templates, by cell."""
    if axis == "template":
        order = sorted(_usable(), key=lambda number: rng.stream_key("gsm template", number))
        return {"learnt": sorted(order[OTHERS:]), "other": sorted(order[:OTHERS])}
    found: dict[str, list[int]] = {cell: [] for cell in CELLS[axis]}
    for number in _usable():
        steps = len(_steps(_filled(_templates([number])[0], 0).answer))
        found["2-3" if steps <= 3 else "4" if steps == 4 else "5+"].append(number)
    return found


def _usable() -> list[int]:
    with quiet_import():
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok
    return tasks_ok


def _templates(numbers: Sequence[int]) -> list[Template]:
    with quiet_import():
        from reasoning_gym.factory import create_dataset
    every: Any = create_dataset("gsm_symbolic", seed=0)
    generators: dict[int, Template] = every.generators
    return [generators[number] for number in numbers]


def _filled(template: Template, number: int, name: str = "") -> Question:
    """Return a template's problem and chain, with names and numbers drawn from ``number``. name: of the template."""
    item = template(Random(number), 1.0)
    return Question(item["question"].strip(), item["metadata"]["answer_cot"].strip(), name)
