"""Hints and curricula in a running stage: sampling, judging, learning, and continuation after an interruption."""

import shutil

import numpy as np
import pytest

from rayexp.config import RunConfig
from rayexp.execution import rollout_loop, supervised
from rayexp.rewards.letters import Letters
from rayexp.rl.prompts import Prompts, group_rewards
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.base import Completions
from rayexp.stages import PromptShare
from rayexp.store.artifacts import Store
from rayexp.tasks.strings import StringTask
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import logged, weights_digest
from tests.fixtures.factories import MICRO, grpo, pretrain, rft, sft

TUNED = sft(pretrain(task=StringTask(axis="length"), decoder=MICRO, samples=256))
CURRICULUM = {"prompt_role": "ood", "curriculum": (PromptShare(kind="id"),), "hint_tokens": 3}
SETTINGS = {**CURRICULUM, "sampler": "torch", "rewards": (Letters(),), "filter": "resample"}


class StopHereError(Exception):
    pass


@pytest.fixture
def run_config(tmp_path, monkeypatch):
    """Return a configuration with the stages from which GRPO starts in its store, and a checkpoint at every step."""
    monkeypatch.setattr(rollout_loop, "acquire_workers", crash_harness.local_workers)
    store = str(tmp_path / "store")
    supervised.run_in_process(list(TUNED.lineage), RunConfig(store=store), lambda report: None)
    return RunConfig(store=store, checkpoint_every_s=0, keep_rollouts=True)


def result(run_config, stage):
    store = Store(run_config.store)
    return weights_digest(store, stage), logged(store, stage), store.table(stage.id, "rollouts.parquet").to_pylist()


def encode(task, text):
    """Return token ids. ``<unused>`` stands for an id without a symbol."""
    unused = task.vocabulary.size - 1
    return [
        token for word in text.split() for token in ([unused] if word == "<unused>" else task.vocabulary.encode(word))
    ]


def stop_in_step_3(report):
    if report["step"] == 3:
        raise StopHereError


@pytest.mark.parametrize("make", [grpo, rft])
def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(make, run_config, tmp_path):
    stage = make(TUNED, **(SETTINGS if make is grpo else CURRICULUM))
    elsewhere = run_config.model_copy(update={"store": str(tmp_path / "elsewhere")})
    shutil.copytree(run_config.store, elsewhere.store)
    rollout_loop.run(stage, [], elsewhere, lambda report: None)
    with pytest.raises(Exception, match="step 3: StopHereError"):
        rollout_loop.run(stage, [], run_config, stop_in_step_3)
    seen = []
    rollout_loop.run(stage, [], run_config, lambda report: seen.append(report["step"]))
    assert seen == [3, 4]
    assert result(run_config, stage) == result(elsewhere, stage)


def test_what_was_drawn_is_paid_with_its_hint_and_learnt_from_alone(run_config):
    stage = grpo(TUNED, **SETTINGS)
    rollout_loop.run(stage, [], run_config, lambda report: None)
    task, prompts = StringTask(axis="length"), Prompts(stage)
    rows = Store(run_config.store).table(stage.id, "rollouts.parquet").to_pylist()
    lengths = set()
    for row in rows:
        batch = prompts.at(row["step"])
        asked, hint = batch.prompts[batch.numbers.index(row["prompt_number"])], stage.hint_at(row["step"])
        solution, completion = task.solve(asked), encode(task, row["completion"])
        given = list(solution.completion[:hint])
        assert encode(task, row["prompt"]) == asked + given
        assert len(completion) <= len(solution.completion) - hint
        assert row["reward"] == np.float32(Letters()(task, solution, given + completion))
        assert len(row["logprobs"]) == len(completion)
        lengths.add((len(asked), hint))
    assert {hint for _, hint in lengths} == {3, 2, 1, 0}
    assert {length for length, _ in lengths} == {8, 9, 10}


def test_the_rest_of_the_gold_completion_earns_all_and_the_hint_is_no_part_of_it():
    stage = grpo(TUNED, **SETTINGS)
    batch, task = Prompts(stage).at(0), StringTask(axis="length")
    rest = [list(task.solve(prompt).completion[3:]) for prompt in batch.prompts for _ in range(2)]
    drawn = Completions.from_rows(rest, [[0.0] * len(row) for row in rest], 0)
    rewards_PG = group_rewards(task, (Letters(),), batch, drawn)
    assert (rewards_PG == 1).all()
    for part in rollout_batches(batch, drawn, rewards_PG):
        contexts = [batch.contexts[batch.numbers.index(number)] for number in part.numbers_P]
        assert part.prompts_PT.tolist() == contexts
        assert (part.mask_NC.sum(axis=1) == part.tokens_NC.shape[1]).all()
        assert part.tokens_NC.shape[1] == 5 - 3  # the first step has only prompts of four letters
