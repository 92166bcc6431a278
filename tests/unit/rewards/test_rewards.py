"""Rewards: each one's value for right, wrong and partly right completions, and their weighted sum."""

import numpy as np
import pytest

from rayexp.rewards import REWARDS
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.rl.prompts import group_rewards
from rayexp.sampling.base import Completions
from rayexp.tasks.strings import StringTask

every_format = pytest.mark.parametrize("completion_format", ["answer", "trace"])


def case(completion_format):
    task = StringTask(axis="depth", completion_format=completion_format)
    prompt = task.of_cell("test", 0, "TT", 0, 1).prompts[0].tolist()
    return task, prompt, task.solve(prompt)


def other(token):
    """A letter that is not this one."""
    return 8 + (token - 8 + 1) % 26


@every_format
def test_the_answer_is_paid_for_as_a_whole(completion_format):
    task, _, solution = case(completion_format)
    gold = list(solution.completion)
    assert Answer()(task, solution, gold) == 1
    assert Answer()(task, solution, [*gold[:-2], other(gold[-2]), gold[-1]]) == 0
    assert Answer()(task, solution, gold[:-1]) == 0


@every_format
def test_letters_are_paid_for_where_they_stand(completion_format):
    task, _, solution = case(completion_format)
    gold, size = list(solution.completion), len(solution.completion)
    assert Letters()(task, solution, gold) == 1
    assert Letters()(task, solution, []) == 0
    assert Letters()(task, solution, [other(gold[0]), *gold[1:]]) == (size - 1) / size
    assert Letters()(task, solution, gold[:2]) == 2 / size
    assert Letters()(task, solution, [*gold, task.vocabulary.pad]) == size / (size + 1)


def test_a_completion_earns_the_weighted_sum_and_a_prompt_is_solved_once_a_group(monkeypatch):
    task, prompt, solution = case("answer")
    gold = list(solution.completion)
    drawn = [gold, [other(gold[0]), *gold[1:]]]
    completions = Completions.from_rows(drawn, [[0.0] * len(row) for row in drawn], 0)
    solve, solved = StringTask.solve, []
    monkeypatch.setattr(StringTask, "solve", lambda task, prompt: solved.append(prompt) or solve(task, prompt))
    rewards_PG = group_rewards(task, (Answer(weight=2.0), Letters(weight=-0.5)), [prompt], completions)
    assert rewards_PG.dtype == np.float32
    assert rewards_PG.tolist() == [[pytest.approx(2 - 0.5), pytest.approx(-0.5 * 4 / 5)]]
    assert solved == [prompt]


def test_rewards_are_found_by_being_there():
    assert {"answer", "letters"} <= set(REWARDS)
