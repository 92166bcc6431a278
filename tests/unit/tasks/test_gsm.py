"""Word problems with worked chains: divided into cells, answered after ####, and checked step by step."""

from typing import get_args

import numpy as np
import pytest

from rayexp.studies.gsm import task_of
from rayexp.studies.presets import SCALES
from rayexp.tasks.contract import require_contract
from rayexp.tasks.text import GSMTask, gym
from rayexp.tasks.text.arithmetic import equations, holds

AXES = get_args(GSMTask.model_fields["axis"].annotation)
CHAIN = "Ann buys 2 * 3 apples = 6 apples.\nShe eats one, 6 - 1 = 5 are left.\n#### 5"


@pytest.fixture(scope="module")
def task():
    return GSMTask(axis="depth", templates=2)


def judged(task, gold, written):
    vocabulary = task.vocabulary
    return task.judge(task.solution([], vocabulary.completion(gold)), vocabulary.completion(written))


# Equations in text


@pytest.mark.parametrize(
    ("line", "sides"),
    [
        ("3+4=7", [(7, 7)]),
        ("so he works for 6 days/week * 2 weeks/month = 12 days/month", [(12, 12)]),
        ("they earn $195/day * 12 days/month = $2,340/month", [(2340, 2340)]),
        ("That is 20% * 50 bars = 10 bars, and 10 - 4 = 6", [(10, 10), (6, 6)]),
        ("Its perimeter is 2(32+17) = 98", [(98, 98)]),
        ("12 x 3 = 36 and 36 ÷ 4 = 9", [(36, 36), (9, 9)]),
        ("she owes £5 - £8 = -£3", [(-3, -3)]),
        ("it is 1/4 of it, 3 / 12 = 1/4", [(0.25, 0.25)]),
        ("in percent it is 133 / 350 * 100% = 38%", [(0.38, 0.38)]),
        ("2 + 2 = 5", [(4, 5)]),
        ("   - 10 plants * 6 per plant = 60", [(60, 60)]),
        ("x + 3 = 7, so x = 4", []),
        ("there is no sum = here", []),
        ("1 / 0 = 3", []),
        ("half of the plot is half * 98 beetles = 49 beetles", []),
        (f"{'9' * 400} * 2 = 1", []),
    ],
)
def test_equations_are_found_among_words_and_units(line, sides):
    assert list(equations(line)) == [pytest.approx(pair) for pair in sides]


def test_a_line_holds_unless_one_of_its_equations_does_not():
    assert holds("nothing is claimed here")
    assert holds("10 / 3 = 3.33")
    assert not holds("10 / 3 = 3.4")
    assert not holds("1 + 1 = 2 and 2 + 2 = 5")


# The task


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_keeps_its_contract_and_its_chains_are_right(axis):
    task = GSMTask(axis=axis)
    require_contract(task)
    for _, cell in task.roles():
        batch = task.of_cell("test", 0, cell, 0, 50)
        for prompt, gold in zip(batch.prompts, batch.completions, strict=True):
            verdict = task.judge(task.solution(prompt, gold), gold)
            assert verdict.answer
            assert verdict.trace
            assert verdict.steps_right == verdict.steps


def test_without_the_package_a_stored_task_is_read_and_a_new_one_refused(monkeypatch):
    stored = GSMTask(axis="depth", release="0.1")
    monkeypatch.setattr(gym, "find_spec", lambda name: None)
    assert [cell for _, cell in stored.roles()] == ["2-3", "4", "5+"]
    with pytest.raises(ValueError, match="the task gsm-depth needs reasoning-gym, which is not installed; run: pip"):
        _ = GSMTask(axis="depth").vocabulary


def test_all_templates_are_in_one_cell_and_cells_differ_in_steps():
    depth, template = (GSMTask(axis=axis) for axis in AXES)
    assert [len(numbers) for numbers, _ in depth._templates.values()] == [50, 19, 16]
    assert [len(numbers) for numbers, _ in template._templates.values()] == [60, 25]
    for cell, allowed in {"2-3": (2, 3), "4": (4,), "5+": range(5, 20)}.items():
        batch = depth.of_cell("grpo", 0, cell, 0, 40)
        steps = {
            len(depth.solution(prompt, gold).steps)
            for prompt, gold in zip(batch.prompts, batch.completions, strict=True)
        }
        assert steps <= set(allowed)


@pytest.mark.parametrize(
    ("written", "verdict"),
    [
        (CHAIN, (True, True, 2)),
        ("2 * 3 = 6\n6 - 1 = 5\n#### 5", (True, True, 2)),
        ("6 - 1 = 5\n#### 5", (True, True, 1)),
        ("2 * 3 = 7\n7 - 1 = 6\n#### 5", (True, False, 0)),
        ("2 * 3 = 6\n6 - 1 = 4\n#### 4", (False, False, 1)),
        (CHAIN.replace("#### 5", "#### 4"), (False, False, 2)),
        ("5", (False, False, 1)),
        ("#### 5.0", (False, False, 0)),
    ],
)
def test_a_chain_is_judged_by_its_result_and_by_its_steps(task, written, verdict):
    found = judged(task, CHAIN, written)
    assert (found.answer, found.trace, found.steps_right) == verdict
    assert found.steps == 2


def test_a_chain_that_does_not_end_is_wrong(task):
    gold = task.vocabulary.completion(CHAIN)
    assert not task.judge(task.solution([], gold), gold[:-1]).answer


def test_steps_that_the_data_set_rounds_are_right_by_being_its_own(task):
    rounded = "He writes 1188/60=19 hours.\n#### 19"
    assert not holds(rounded.splitlines()[0])
    assert judged(task, rounded, rounded).trace


def test_a_small_study_has_few_templates():
    toy, paper = task_of("depth", SCALES["toy"]), task_of("depth", SCALES["paper"])
    assert toy.templates == 2
    assert paper.templates is None
    assert toy.vocabulary.size < paper.vocabulary.size


def test_results_of_a_problem_are_told_by_its_template(task):
    numbers, _ = task._templates["4"]
    told = task.templates_of("4", np.arange(20))
    assert set(told) == set(map(str, numbers))
