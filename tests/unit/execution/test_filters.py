"""Filters of GRPO's rollouts: groups that are drawn again, and prompts that are left out once they are solved."""

import shutil
from unittest import mock

import numpy as np
import pytest
from pydantic import ValidationError

from rayexp.config import RunConfig, explain
from rayexp.execution import rollout_log, rollout_loop, supervised
from rayexp.rewards.answer import Answer
from rayexp.rewards.random import Random
from rayexp.rl.prompts import PromptBatch, Prompts
from rayexp.rl.resampling import MOST_DRAWS, resampled, without_variance
from rayexp.rl.unsolved import UnsolvedPrompts
from rayexp.sampling.base import Completions, prompt_seed
from rayexp.store.artifacts import Store
from rayexp.tasks.base import Verdict
from rayexp.tasks.strings import StringTask
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import logged, weights_digest
from tests.fixtures.factories import MICRO, grpo, pretrain, sft

TUNED = sft(pretrain(decoder=MICRO, samples=256))
PLAIN = grpo(TUNED, sampler="torch", prompt_count=12)


def odd_answers(task, solution, completion):
    """Return a verdict by which an untrained decoder is right on some prompts, and not at the first try."""
    letters = (*completion, *solution.completion)
    return Verdict(answer=sum(letters) % 19 == 0, trace=False, steps_right=0, steps=1)


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    monkeypatch.setattr(StringTask, "judge", odd_answers)
    monkeypatch.setattr(rollout_loop, "acquire_workers", crash_harness.local_workers)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a store with the stages from which GRPO starts."""
    folder = tmp_path_factory.mktemp("trained")
    supervised.run_in_process(list(TUNED.lineage), RunConfig(store=str(folder)), lambda report: None)
    return folder


@pytest.fixture
def run_config(trained, tmp_path):
    """Return a configuration with a store of its own and a checkpoint at every step."""
    shutil.copytree(trained, tmp_path / "store")
    return RunConfig(store=str(tmp_path / "store"), checkpoint_every_s=0, keep_rollouts=True)


class StopHereError(Exception):
    pass


def result(run_config, stage):
    store = Store(run_config.store)
    return weights_digest(store, stage), logged(store, stage), store.table(stage.id, "rollouts.parquet").to_pylist()


def curve(run_config, stage, metric):
    table = Store(run_config.store).table(stage.id, "metrics.parquet").to_pandas()
    return table[table.metric == metric].value.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"filter": "resample"},
        {"filter": "unsolved"},
        {"advantage": "critic", "filter": "resample"},
        {"advantage": "critic", "filter": "unsolved"},
        {"advantage": "critic", "staleness": 1, "updates": 2},
    ],
    ids=str,
)
def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(changes, run_config, tmp_path):
    stage = grpo(TUNED, sampler="torch", prompt_count=12, **changes)

    def stop_in_step_3(report):
        if report["step"] == 3:
            raise StopHereError

    elsewhere = run_config.model_copy(update={"store": str(tmp_path / "elsewhere")})
    shutil.copytree(run_config.store, elsewhere.store)
    rollout_loop.run(stage, [], elsewhere, lambda report: None)
    with pytest.raises(Exception, match="step 3: StopHereError"):
        rollout_loop.run(stage, [], run_config, stop_in_step_3)
    seen = []
    rollout_loop.run(stage, [], run_config, lambda report: seen.append(report["step"]))
    assert seen == [3, 4]
    assert result(run_config, stage) == result(elsewhere, stage)


# Groups that are drawn again


def sampled(batch):
    """Return completions by the seeds, and rewards of groups of two. The rewards of prompt 1 never differ; those of
    others differ for some seeds."""
    rows = [[8 + (seed + member) % 1000] for seed in batch.seeds for member in range(2)]
    completions = Completions.from_rows(rows, [[0.0]] * len(rows), 0)
    luck = [(prompt_seed(seed) // 1024) % 4 == 0 for seed in batch.seeds]
    rewards_PG = np.array([[0, number != 1 and lucky] for number, lucky in zip(batch.numbers, luck, strict=True)])
    return completions, rewards_PG.astype(np.float32)


def test_groups_are_drawn_again_until_they_differ_and_all_else_stays_as_it_was():
    count = 16
    numbers = list(range(count))
    batch = PromptBatch(numbers, [[1, n] for n in numbers], [prompt_seed("it", n) for n in numbers], [1] * count)
    asked = []

    def draw(again):
        asked.append(again)
        return sampled(again)

    first, before_PG = sampled(batch)
    completions, rewards_PG, drawn = resampled(batch, first, before_PG, draw)
    kept = np.flatnonzero(~without_variance(before_PG))
    assert 0 < len(kept) < count
    for number in kept:
        assert completions.rows[2 * number : 2 * number + 2] == first.rows[2 * number : 2 * number + 2]
    assert len(asked) == MOST_DRAWS - 1
    assert drawn == 2 * (count + sum(len(again.numbers) for again in asked))
    assert 1 in asked[-1].numbers  # a prompt whose rewards never differ
    left = set(np.flatnonzero(without_variance(rewards_PG)))
    assert 1 in left
    for again in asked:
        assert again.prompts == [[1, number] for number in again.numbers]
        last = sampled(again)
        for place, number in enumerate(again.numbers):
            if again is asked[-1] or number not in asked[asked.index(again) + 1].numbers:
                assert completions.rows[2 * number : 2 * number + 2] == last[0].rows[2 * place : 2 * place + 2]
                assert rewards_PG[number].tolist() == last[1][place].tolist()
    seeds = [seed for each in (batch, *asked) for seed in each.seeds]
    assert len(set(seeds)) == len(seeds)


def test_a_draw_depends_on_the_prompt_and_the_attempt_and_on_nobody_else():
    batch = Prompts(PLAIN).at(3)
    alone, among = batch.again([5], 2), batch.again([1, 5, 6], 2)
    assert (alone.numbers[0], alone.prompts[0], alone.seeds[0]) == (
        *(among.numbers[1], among.prompts[1], among.seeds[1]),
    )
    assert batch.again([5], 1).seeds != alone.seeds


def test_the_cost_is_logged_and_fewer_groups_teach_nothing(run_config):
    stage = grpo(TUNED, sampler="torch", prompt_count=12, filter="resample")
    for each in (stage, PLAIN):
        rollout_loop.run(each, [], run_config, lambda report: None)
    assert curve(run_config, PLAIN, "rollout/drawn_per_kept") == []
    assert all(1 < cost <= MOST_DRAWS for cost in curve(run_config, stage, "rollout/drawn_per_kept"))
    flat, usual = (curve(run_config, each, "rollout/zero_variance_groups") for each in (stage, PLAIN))
    assert np.mean(flat) < np.mean(usual)


class SeveralWorkers(crash_harness.LocalWorkers):
    """Three samplers, each with a share of the prompts."""

    def start(self, prompts, seeds, group_size, max_tokens):
        shares = [slice(i * len(prompts) // 3, (i + 1) * len(prompts) // 3) for i in range(3)]
        parts = [
            self.generate(prompts[share], seeds[share], group_size, max_tokens[share])
            for share in shares
            if prompts[share]
        ]
        return lambda: Completions.concatenate(parts)


def test_the_number_of_workers_changes_nothing_of_what_is_drawn_and_paid(run_config, tmp_path, monkeypatch):
    """Include groups that are drawn again, and payments that are drawn."""
    rewards = (Answer(), Random(weight=0.5, chance=0.1))
    stage = grpo(TUNED, sampler="torch", prompt_count=12, filter="resample", rewards=rewards, steps=1)
    elsewhere = run_config.model_copy(update={"store": str(tmp_path / "elsewhere")})
    shutil.copytree(run_config.store, elsewhere.store)
    rollout_loop.run(stage, [], run_config, lambda report: None)
    monkeypatch.setattr(crash_harness, "LocalWorkers", SeveralWorkers)
    rollout_loop.run(stage, [], elsewhere, lambda report: None)
    one, several = (
        Store(each.store).table(stage.id, "rollouts.parquet").drop(["logprobs"]) for each in (run_config, elsewhere)
    )
    assert one.equals(several)
    assert curve(run_config, stage, "rollout/drawn_per_kept") == curve(elsewhere, stage, "rollout/drawn_per_kept")
    assert curve(run_config, stage, "rollout/drawn_per_kept")[0] > 1


# Prompts that are left out


def answered(prompts, step, numbers):
    """Record a step in which only these prompts are answered. Return its numbers, and the count of unsolved prompts."""
    batch = prompts.at(step)
    rows = [list(task_solution(prompt).completion) for prompt in batch.prompts]
    completions = Completions.from_rows(rows, [[0.0] * len(row) for row in rows], 0)
    right = {tuple(batch.prompts[place]) for place, number in enumerate(batch.numbers) if number in numbers}

    def judge(task, solution, completion):
        hit = any(task_solution(prompt) == solution for prompt in right)
        return Verdict(answer=hit, trace=hit, steps_right=0, steps=1)

    with mock.patch.object(StringTask, "judge", judge):
        left = prompts.record(batch, completions)
    return batch.numbers, left["unsolved_prompts"]


def task_solution(prompt):
    return StringTask(axis="composition").solve(prompt)


def test_solved_prompts_are_passed_over_and_the_rest_comes_in_the_order_of_all():
    stage = grpo(TUNED, filter="unsolved", prompt_count=20)  # a step has 8 of them
    prompts, order = UnsolvedPrompts(stage, {}), Prompts(stage).order(0, 100).tolist()
    assert prompts.at(0).numbers == Prompts(stage).at(0).numbers == order[:8]
    solved = set(order[:3])
    assert answered(prompts, 0, solved) == (order[:8], 17)
    assert answered(prompts, 1, set()) == (order[8:16], 17)
    expected = [number for number in order[16:] if number not in solved][:8]
    assert prompts.at(2).numbers == prompts.at(2).numbers == expected
    again = UnsolvedPrompts(stage, prompts.files())
    assert again.at(2) == prompts.at(2)
    assert again.at(2).seeds == Prompts(stage).at(2).seeds


def test_the_last_prompts_come_up_several_times_in_a_step():
    stage = grpo(TUNED, filter="unsolved", prompt_count=20)
    prompts = UnsolvedPrompts(stage, {})
    last = set(prompts.at(0).numbers[:2])
    answered(prompts, 0, set(range(20)) - last)
    answered(prompts, 1, set(range(20)) - last)
    answered(prompts, 2, set(range(20)) - last)
    batch = prompts.at(3)
    assert set(batch.numbers) == last
    assert len(set(batch.seeds)) == len(batch.numbers) == 8
    assert not prompts.exhausted
    assert answered(prompts, 3, last)[1] == 0
    assert prompts.exhausted


def test_a_stage_ends_where_every_prompt_is_solved(run_config, monkeypatch):
    stage = grpo(TUNED, sampler="torch", prompt_count=12, filter="unsolved", steps=6)
    right = Verdict(answer=True, trace=True, steps_right=1, steps=1)
    monkeypatch.setattr(StringTask, "judge", lambda task, solution, completion: right)
    with mock.patch.object(rollout_loop.log, "info") as said, mock.patch.object(rollout_log.log, "warning") as warned:
        rollout_loop.run(stage, [], run_config, lambda report: None)
    said.assert_called_once_with("%s: every prompt has a right completion after %d of %d steps", stage.label, 2, 6)
    warned.assert_not_called()  # about steps without rollouts
    assert curve(run_config, stage, "rollout/unsolved_prompts") == [4, 0]
    assert Store(run_config.store).finished(stage.id)


def test_a_hit_is_a_right_answer_whatever_the_rewards_pay(run_config):
    """Use a reward that penalises right answers."""
    stage = grpo(TUNED, sampler="torch", prompt_count=12, filter="unsolved", rewards=(Answer(weight=-1.0),))
    rollout_loop.run(stage, [], run_config, lambda report: None)
    left = curve(run_config, stage, "rollout/unsolved_prompts")
    rows = Store(run_config.store).table(stage.id, "rollouts.parquet").to_pandas()
    hits = rows[rows.reward < 0]
    assert [12 - hits[hits.step <= step].prompt_number.nunique() for step in range(4)] == left
    assert 0 < left[-1] < 12
    for number, hit in hits.groupby("prompt_number"):
        assert rows[rows.prompt_number == number].step.max() == hit.step.min() == hit.step.max()


# Refusals


@pytest.mark.parametrize("name", ["resample", "unsolved"])
def test_rollouts_that_are_drawn_ahead_cannot_be_filtered(name):
    with pytest.raises(ValidationError) as refused:
        grpo(TUNED, staleness=1, filter=name)
    assert explain(refused.value).startswith(f"filter={name!r} needs staleness=0, not 1, because")
