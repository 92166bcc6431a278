"""Rewards: their values for right, wrong and partly right completions, and their weighted sum."""

import math
from collections import Counter
from typing import Literal

import numpy as np
import pytest
from pydantic import ValidationError

from rayexp.config import explain
from rayexp.models import factory
from rayexp.rewards import REWARDS, DrawReward, Reward
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.rewards.letters_sum import LettersSum
from rayexp.rewards.payment import RewardError, group_payments
from rayexp.rewards.random import Random
from rayexp.rewards.shaped import Shaped, shaping
from rayexp.rewards.steps import Steps
from rayexp.rl.learner import GRPOLearner
from rayexp.rl.prompts import PromptBatch, group_rewards
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.base import Completions, prompt_seed
from rayexp.tasks.sorting import Sorting
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO, grpo, tiny_chain
from tests.fixtures.rollouts import grpo_spec
from tests.fixtures.weights import same, weights

every_format = pytest.mark.parametrize("completion_format", ["answer", "trace"])


def case(completion_format):
    task = StringTask(axis="depth", completion_format=completion_format)
    prompt = task.of_cell("test", 0, "TT", 0, 1).prompts[0]
    return task, prompt, task.solve(prompt)


def other(token):
    """Return another letter."""
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


@every_format
def test_the_sum_of_letters_pays_1_for_each_and_is_not_divided(completion_format):
    task, _, solution = case(completion_format)
    gold, size = list(solution.completion), len(solution.completion)
    assert LettersSum()(task, solution, gold) == size
    assert LettersSum()(task, solution, []) == 0
    assert LettersSum()(task, solution, [other(gold[0]), *gold[1:]]) == size - 1
    assert LettersSum()(task, solution, gold[:2]) == 2
    assert LettersSum()(task, solution, [*gold[:-1], gold[0], gold[-1]]) == size - 1  # no <eos> in its place


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_steps_are_paid_for_up_to_the_first_wrong_one(wrong):
    """Put a wrong letter into step ``wrong``; 2: into none. A step has four letters and a semicolon or ``<eos>``."""
    task, _, solution = case("trace")
    completion = list(solution.completion)
    if wrong < 2:
        completion[5 * wrong] = other(completion[5 * wrong])
    assert Steps()(task, solution, completion) == wrong
    assert Steps()(task, solution, completion[:-1]) == 0  # it never ended


@pytest.mark.parametrize("task", [Sorting(), StringTask(axis="depth")], ids=lambda task: task.label)
def test_steps_are_refused_where_a_completion_shows_none(task):
    with pytest.raises(ValidationError) as refused:
        grpo(tiny_chain(task).sft, rewards=(Answer(), Steps()))
    said = explain(refused.value)
    assert said.startswith(
        f"the reward steps needs a task that writes its steps, and {task.label} writes only one; use "
    )
    assert grpo(tiny_chain(StringTask(axis="depth", completion_format="trace")).sft, rewards=(Steps(),)).rewards


# Null controls


@every_format
def test_shaping_pays_for_progress_and_nothing_in_all(completion_format):
    task, _, solution = case(completion_format)
    gold = list(solution.completion)
    size = len(gold)
    assert shaping(solution, gold) == [1] * (size - 1) + [1 - size]
    assert shaping(solution, [other(gold[0]), *gold[1:3]]) == [0, 1, -1]
    for completion in (gold, gold[:2], [other(gold[0]), *gold[1:]], [*gold, *gold], []):
        assert sum(shaping(solution, completion)) == 0
        assert Shaped(weight=0.3)(task, solution, completion) == 0


def drawn_group(task, size):
    """Return two prompts of different lengths, each with right, half right and wrong completions."""
    prompts = [task.of_cell("grpo", 0, cell, 0, 1).prompts[0] for cell in ("T", "TS")]
    rows = []
    for prompt in prompts:
        gold = list(task.solve(prompt).completion)
        kinds = [gold, [other(gold[0]), *gold[1:]], gold[:3], [*gold[:2], other(gold[2]), *gold[3:]]]
        rows += [kinds[member % len(kinds)] for member in range(size)]
    batch = PromptBatch([0, 1], prompts, [prompt_seed("test", i) for i in range(2)], [5, 5])
    return batch, Completions.from_rows(rows, [[0.0] * len(row) for row in rows], 0)


@pytest.mark.parametrize("advantage", ["group_std", "mean_only"])
@pytest.mark.parametrize("size", [3, 6, 8])
def test_a_grpo_update_with_shaping_is_bit_by_bit_the_one_without(size, advantage):
    spec = grpo_spec(advantage=advantage)
    task = spec.root.task
    batch, completions = drawn_group(task, size)

    def updated(rewards):
        learner = GRPOLearner(spec, factory.build(MICRO, VOCABULARY, seed=1))
        rewards_PG = group_rewards(task, rewards, batch, completions)
        batches = rollout_batches(batch, completions, rewards_PG)
        return [learner.update(batches, math.inf) for _ in range(2)], weights(learner.model)

    statistics, alone = updated((Answer(),))
    shaped_statistics, shaped = updated((Answer(), Shaped(weight=0.3)))
    assert shaped_statistics == statistics
    assert same(shaped, alone)
    assert not same(updated((Answer(), Letters()))[1], alone)


def test_a_random_payment_is_that_of_the_draw_and_not_of_what_was_written():
    task, prompt, solution = case("answer")
    gold = list(solution.completion)
    seeds = [seed for step in range(500) for seed in range(prompt_seed(0, step), prompt_seed(0, step) + 8)]
    paid = group_payments(task, (Random(),), prompt, solution, [gold] * len(seeds), seeds)
    assert set(paid) == {0, 1}
    assert np.mean(paid) == pytest.approx(0.5, abs=4 / 2 / math.sqrt(len(paid)))
    assert group_payments(task, (Random(),), prompt, solution, [gold[:2]] * len(seeds), seeds) == paid
    members = np.array(paid).reshape(-1, 8)
    shared = np.corrcoef(members, rowvar=False)[~np.eye(8, dtype=bool)]  # neighbouring seeds are not alike
    assert np.abs(shared).max() < 0.2
    rare = group_payments(task, (Random(chance=0.1),), prompt, solution, [gold] * len(seeds), seeds)
    assert np.mean(rare) == pytest.approx(0.1, abs=0.02)


def test_random_payments_do_not_depend_on_who_else_is_asked_about():
    """Pay a part of a batch as in the whole. So payments do not depend on the number of workers either."""
    task = StringTask(axis="composition")
    batch, completions = drawn_group(task, 8)
    whole = group_rewards(task, (Random(),), batch, completions)
    second = PromptBatch([1], batch.prompts[1:], batch.seeds[1:], [5])
    rows = completions.rows[8:]
    part = Completions.from_rows(rows, [[0.0] * len(row) for row in rows], 0)
    assert group_rewards(task, (Random(),), second, part).tolist() == whole[1:].tolist()
    assert 0 < whole.mean() < 1


def test_a_payment_for_draws_has_to_be_told_the_draw():
    task, _, solution = case("answer")
    with pytest.raises(TypeError, match="the reward random judges a draw, whose seed has to be given"):
        Random()(task, solution, [])


# Payments of a group


class Counting(Reward):
    """A reward that records the completions that it judges."""

    version: Literal[1] = 1
    asked: list = []

    def __call__(self, task, solution, completion):
        self.asked.append(tuple(completion))
        return float(len(completion))


class BySeed(DrawReward):
    version: Literal[1] = 1

    def of_draw(self, task, solution, completion, seed):
        return 1 / (seed - 2)


def test_each_distinct_completion_is_judged_once_a_prompt_and_copies_earn_the_same():
    task = StringTask(axis="composition")
    batch, completions = drawn_group(task, 8)
    reward = Counting()
    rewards_PG = group_rewards(task, (reward,), batch, completions)
    assert rewards_PG.tolist() == [[len(row) for row in completions.rows[i : i + 8]] for i in (0, 8)]
    assert set(Counter(reward.asked).values()) == {1}
    assert len(reward.asked) == 8


def test_an_error_in_a_draw_is_told_with_its_prompt_and_completion():
    task, prompt, solution = case("answer")
    with pytest.raises(RewardError) as refused:
        group_payments(task, (Answer(), BySeed()), prompt, solution, [[], solution.completion], [1, 2])
    decode = task.vocabulary.decode
    assert str(refused.value).startswith(f"the reward {__name__}:BySeed raised ZeroDivisionError: ")
    assert str(refused.value).endswith(f"; prompt: {decode(prompt)}; completion: {decode(solution.completion)}")


def test_a_completion_earns_the_weighted_sum_and_a_prompt_is_solved_once_a_group(monkeypatch):
    task, prompt, solution = case("answer")
    gold = list(solution.completion)
    drawn = [gold, [other(gold[0]), *gold[1:]]]
    completions = Completions.from_rows(drawn, [[0.0] * len(row) for row in drawn], 0)
    solve, solved = StringTask.solve, []
    monkeypatch.setattr(StringTask, "solve", lambda task, prompt: solved.append(prompt) or solve(task, prompt))
    batch = PromptBatch([0], [prompt], [0], [len(gold)])
    rewards_PG = group_rewards(task, (Answer(weight=2.0), Letters(weight=-0.5)), batch, completions)
    assert rewards_PG.dtype == np.float32
    assert rewards_PG.tolist() == [[pytest.approx(2 - 0.5), pytest.approx(-0.5 * 4 / 5)]]
    assert solved == [prompt]


def test_rewards_are_found_by_being_there():
    assert {"answer", "letters", "letters_sum", "random", "shaped", "steps"} <= set(REWARDS)
