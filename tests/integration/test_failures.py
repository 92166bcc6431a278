"""Death and hanging of peers, and numbers that are not finite, on a real cluster: each is mended, or named in an
error."""

import importlib
import json
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.experimental import collective
from transformers import AutoModelForCausalLM

from rayexp.config import RunConfig
from rayexp.distributed import weight_sync
from rayexp.distributed import workers as workers_module
from rayexp.distributed.rollout_manager import RolloutManager
from rayexp.distributed.rpc import RemoteTimeoutError
from rayexp.distributed.saving import ask_to_save
from rayexp.errors import NotFiniteError, StageError
from rayexp.execution import rollout_loop, supervised
from rayexp.rl.prompts import Prompts
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import memory, parse_stage
from rayexp.store.artifacts import Store
from rayexp.store.filesystem import Files, StoreError
from rayexp.store.leases import Leases
from rayexp.sweep import scheduler
from rayexp.sweep.plan import Plan
from rayexp.sweep.progress import Progress
from rayexp.sweep.scheduler import run_trial
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import logged, weights_digest
from tests.fixtures.factories import evaluate, grpo, pretrain, sft

BASE = pretrain()
STAGE = grpo(sft(BASE), steps=5, sampler="torch")
QUICK = {"checkpoint_every_s": 0, "keep_rollouts": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a store in which all that STAGE is built on is finished."""
    folder = tmp_path_factory.mktemp("trained")
    supervised.run_in_process(list(STAGE.lineage[:-1]), RunConfig(store=str(folder)), lambda report: None)
    return folder


@pytest.fixture
def run_config(trained, tmp_path):
    """Return settings with a copy of that store, for one test."""
    shutil.copytree(trained, tmp_path / "store")
    return RunConfig(store=str(tmp_path / "store"), **QUICK)


@pytest.fixture
def alone(monkeypatch):
    """Put learner and sampler into this process."""
    monkeypatch.setattr(rollout_loop, "acquire_workers", crash_harness.local_workers)


def process_of(actor) -> psutil.Process:
    return psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))


def members(workers) -> dict[str, psutil.Process]:
    learners, rollouts = workers.learner.actors, workers.rollout_manager.workers
    return {
        "learner": process_of(learners[0]),
        "last rank": process_of(learners[-1]),
        "rollout": process_of(rollouts[0]),
    }


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory):
    """Return a store with the stage and its measurement finished in this process, with ``odd_rewards``."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    shutil.copytree(trained, store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_loop, "acquire_workers", crash_harness.local_workers)
        patch.setattr(rollout_loop, "group_rewards", crash_harness.odd_rewards)
        rollout_loop.run(STAGE, [evaluate(STAGE)], RunConfig(store=str(store), **QUICK), lambda report: None)
    return Store(str(store))


@pytest.fixture
def at_step(monkeypatch):
    """Return a maker of progress callbacks that send a signal to one process of the workers, once, after a step."""
    acquire_workers, seen = rollout_loop.acquire_workers, {}

    def watched(spec, run_config):
        manager = acquire_workers(spec, run_config)

        class Watched:
            def __enter__(self):
                workers = manager.__enter__()
                seen.update(members(workers))
                return workers

            def __exit__(self, *error):
                return manager.__exit__(*error)

        return Watched()

    monkeypatch.setattr(rollout_loop, "acquire_workers", watched)

    def make(step, who, how):
        def progress(report):
            if report["step"] == step and "struck" not in seen:
                seen["struck"] = seen[who]
                seen[who].send_signal(how)

        return progress, seen

    return make


@pytest.mark.slow
def test_a_learner_that_dies_goes_on_from_its_checkpoint_with_the_same_result(
    cluster, run_config, at_step, undisturbed, monkeypatch
):
    monkeypatch.setattr(rollout_loop, "group_rewards", crash_harness.odd_rewards)
    progress, seen = at_step(3, "learner", signal.SIGKILL)
    rollout_loop.run(STAGE, [evaluate(STAGE)], run_config, progress)
    assert not seen["struck"].is_running() or seen["struck"].status() == psutil.STATUS_ZOMBIE
    found, expected = Store(run_config.store), undisturbed
    assert weights_digest(found, STAGE) == weights_digest(expected, STAGE)
    assert logged(found, STAGE) == logged(expected, STAGE)
    assert found.table(STAGE.id, "rollouts.parquet").equals(expected.table(STAGE.id, "rollouts.parquet"))
    assert found.table(evaluate(STAGE).id, "results.parquet").equals(
        expected.table(evaluate(STAGE).id, "results.parquet")
    )


@pytest.mark.slow
@pytest.mark.parametrize("who", ["rollout", "learner"])
def test_weights_that_bypass_the_object_store_change_nothing_and_a_death_ends_the_attempt(
    who, cluster, run_config, at_step, undisturbed, monkeypatch
):
    """Use gloo and two workers; NCCL and CUDA IPC are the same calls between GPUs."""
    monkeypatch.setattr(rollout_loop, "group_rewards", crash_harness.odd_rewards)
    straight = run_config.model_copy(update={"weight_transfer": "gloo", "rollout_workers": 2})
    progress, seen = at_step(3, who, signal.SIGKILL)
    with pytest.raises(StageError, match=r"grpo-id-b0\.1, step \d") as ended:
        rollout_loop.run(STAGE, [], straight, progress)
    assert "struck" in seen, f"it ended by itself: {ended.value}"
    steps = []
    rollout_loop.run(STAGE, [], straight, lambda report: steps.append(report["step"]))
    assert steps in ([3, 4, 5], [4, 5])
    found, expected = Store(run_config.store), undisturbed
    assert weights_digest(found, STAGE) == weights_digest(expected, STAGE) != weights_digest(found, STAGE.init)
    drawn, also_drawn = (store.table(STAGE.id, "rollouts.parquet") for store in (found, expected))
    assert drawn.drop_columns("logprobs").equals(also_drawn.drop_columns("logprobs")), "two workers halve the batches"


def test_actors_that_do_not_join_are_named_and_a_group_that_is_gone_hides_no_failure(monkeypatch):
    group = weight_sync.TransferGroup([], RunConfig(weight_transfer="gloo", timeout_s=0.2))
    monkeypatch.setattr(collective, "create_collective_group", lambda actors, backend: time.sleep(60))
    with pytest.raises(RemoteTimeoutError, match=r"no answer from the actors that weights go between within 0\.2 s"):
        group.join()
    group.forget()
    monkeypatch.setattr(collective, "create_collective_group", lambda actors, backend: "gone already")
    group.join()
    with pytest.raises(ValueError, match="No group"):
        collective.destroy_collective_group("gone already")
    group.forget()


#: Largest difference of a weight between two ranks and one: rounding, which Adam makes larger.
ROUNDING = 1e-5


@pytest.fixture
def two_ranks(run_config, monkeypatch):
    """Return settings of a learner with two ranks, whose weights go to a sampler in several parts."""
    monkeypatch.setattr(rollout_loop, "group_rewards", crash_harness.odd_rewards)
    monkeypatch.setattr(memory, "CHUNK", 1)
    return run_config.model_copy(update={"learner_workers": 2, "learner_cpus": 0.2, "rollout_cpus": 0.2})


@pytest.mark.slow
def test_two_ranks_of_a_learner_go_on_as_one_where_one_of_them_died_and_end_where_a_learner_of_one_ends(
    cluster, two_ranks, at_step, undisturbed, tmp_path
):
    calm = two_ranks.model_copy(update={"store": str(tmp_path / "calm")})
    shutil.copytree(two_ranks.store, calm.store)
    progress, seen = at_step(3, "last rank", signal.SIGKILL)
    short = evaluate(STAGE, prompts_per_cell=5)
    rollout_loop.run(STAGE, [evaluate(STAGE), short], calm, lambda report: None)
    rollout_loop.run(STAGE, [evaluate(STAGE)], two_ranks, progress)
    assert "struck" in seen
    found, whole = Store(two_ranks.store), Store(calm.store)
    assert whole.finished(short.id), "one measurement follows the other"
    assert weights_digest(found, STAGE) == weights_digest(whole, STAGE)
    assert logged(found, STAGE) == logged(whole, STAGE)
    with found.model(STAGE.id) as model, undisturbed.model(STAGE.id) as expected:
        names = [sorted(file.name for file in folder.iterdir()) for folder in (model, expected)]
        ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (model, expected))
    assert names[0] == names[1]
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < ROUNDING
    ours, theirs = (store.table(evaluate(STAGE).id, "results.parquet")["log_mass"] for store in (found, undisturbed))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
def test_a_sampler_that_dies_with_weights_that_came_in_parts_ends_the_attempt(cluster, two_ranks, monkeypatch):
    """Kill a sampler that has its weights. One that dies before it has them is started again, and gets them all."""
    start = RolloutManager.start

    def dies(self, *request):
        process_of(self.workers[0]).kill()
        return start(self, *request)

    monkeypatch.setattr(RolloutManager, "start", dies)
    with pytest.raises(
        StageError, match=r"rollout worker 0 \(generate\) of \S+ died, and no copy of its weights is kept"
    ):
        rollout_loop.run(STAGE, [], two_ranks, lambda report: None)
    assert not Store(two_ranks.store).finished(STAGE.id)


@pytest.mark.slow
def test_a_learner_that_keeps_dying_ends_the_stage(cluster, run_config, monkeypatch):
    begin = workers_module.LearnerHandle.begin

    def begin_and_die(self, *given):
        begun = begin(self, *given)
        process_of(self.actors[0]).kill()
        return begun

    monkeypatch.setattr(workers_module.LearnerHandle, "begin", begin_and_die)
    once = run_config.model_copy(update={"worker_failures": 1})
    with pytest.raises(workers_module.LearnerDiedError, match=r"the learner of \S+/grpo-id-b0\.1 died"):
        rollout_loop.run(STAGE, [], once, lambda report: None)
    assert not Store(run_config.store).finished(STAGE.id)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "named"),
    [
        ("rollout", r"no answer from rollout worker 0 \((sync|generate)\) of \S+/grpo-id-b0\.1 within 6 s"),
        ("learner", r"no answer from the learner of \S+/grpo-id-b0\.1 \(\w+\) within 6 s"),
    ],
)
def test_a_peer_that_hangs_is_named_and_ended(cluster, run_config, at_step, who, named):
    progress, seen = at_step(2, who, signal.SIGSTOP)
    short = run_config.model_copy(update={"timeout_s": 6.0})
    rollout_loop.run(STAGE.model_copy(update={"steps": 1}), [], run_config, lambda report: None)  # starts the actors
    with pytest.raises(RemoteTimeoutError, match=named):
        rollout_loop.run(STAGE, [], short, progress)
    deadline = time.monotonic() + 20
    while seen[who].is_running() and seen[who].status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"the {who} that hung is still there"
        time.sleep(0.2)


def test_storage_that_hangs_ends_the_stage_with_its_name(alone, run_config, monkeypatch):
    write = Files.write

    def hang(self, name, data):
        if name.startswith(f"work/{STAGE.id}"):
            return self._answer(f"write {name}", lambda: time.sleep(30))
        return write(self, name, data)

    monkeypatch.setattr(Files, "write", hang)
    short = run_config.model_copy(update={"timeout_s": 2.0})
    with pytest.raises(StoreError, match=r"step 1: no answer from the store .* \(write work/\S+\) within 2 s"):
        rollout_loop.run(STAGE, [], short, lambda report: None)


def test_a_learner_computes_in_the_threads_it_was_given_cores_for(alone, run_config):
    """Check it also for a measurement that an earlier attempt left to do."""
    torch.set_num_threads(3)
    try:
        rollout_loop.run(STAGE, [], run_config, lambda report: assert_threads(1))
        torch.set_num_threads(3)
        rollout_loop.run(STAGE, [evaluate(STAGE)], run_config, lambda report: None)
        assert_threads(1)
    finally:
        torch.set_num_threads(1)


def assert_threads(count):
    assert torch.get_num_threads() == count


def test_a_grpo_stage_saves_itself_when_its_driver_asks(cluster, alone, run_config):
    with Leases(Store(run_config.store).files) as leases, ThreadPoolExecutor() as pool:
        asked = pool.submit(ask_to_save, leases.driver, {STAGE.id}, patience_s=60)
        leased = {"lease": str(leases.take(STAGE.id)), "checkpoint_every_s": 60.0}
        rollout_loop.run(
            STAGE.model_copy(update={"steps": 200}), [], run_config.model_copy(update=leased), lambda report: None
        )
        assert asked.result() == set()


def test_stale_rollouts_survive_an_interruption(alone, run_config, tmp_path, monkeypatch):
    """Check that each step but the first learns from weights before the last update, also after a checkpoint."""
    monkeypatch.setattr(rollout_loop, "group_rewards", crash_harness.odd_rewards)
    stage = STAGE.model_copy(update={"staleness": 1})
    elsewhere = run_config.model_copy(update={"store": str(tmp_path / "undisturbed")})
    shutil.copytree(run_config.store, elsewhere.store)

    def stop(report):
        if report["step"] == 3:
            raise InterruptedError

    with pytest.raises(StageError, match="step 3"):
        rollout_loop.run(stage, [], run_config, stop)
    rollout_loop.run(stage, [], run_config, lambda report: None)
    rollout_loop.run(stage, [], elsewhere, lambda report: None)
    found, expected = Store(run_config.store), Store(elsewhere.store)
    assert weights_digest(found, stage) == weights_digest(expected, stage)
    assert logged(found, stage) == logged(expected, stage)
    assert found.table(stage.id, "rollouts.parquet").equals(expected.table(stage.id, "rollouts.parquet"))
    drawn = expected.table(stage.id, "rollouts.parquet").to_pandas()
    assert drawn.groupby("step")["weight_version"].unique().map(list).to_list() == [[0], [0], [1], [2], [3]]
    rollout_loop.run(STAGE, [], elsewhere, lambda report: None)
    assert weights_digest(expected, STAGE) != weights_digest(expected, stage)


@pytest.mark.parametrize("what", ["the reward", "the sampler's log-probability"])
def test_a_number_that_is_none_names_its_prompt_and_leaves_the_last_checkpoint(alone, run_config, monkeypatch, what):
    spoilt = []

    def spoil(values, rows):
        values = np.array(values, dtype=np.float32)
        values[rows] = np.nan
        return values

    rewards, generate = rollout_loop.group_rewards, TorchSampler.generate

    def rewards_with_nan(*given):
        found = rewards(*given)
        if given[-1].weight_version == 2 and what == "the reward":
            spoilt.append(Prompts(STAGE).at(2).numbers[1])
            return spoil(found, 1)
        return found

    def generate_nan(self, prompts, seeds, group_size, max_tokens):
        found = generate(self, prompts, seeds, group_size, max_tokens)
        if found.weight_version == 2 and what != "the reward":
            spoilt.append(Prompts(STAGE).at(2).numbers[1])
            found.logprobs_NC[group_size, 0] = np.nan
        return found

    monkeypatch.setattr(rollout_loop, "group_rewards", rewards_with_nan)
    monkeypatch.setattr(TorchSampler, "generate", generate_nan)
    with pytest.raises(NotFiniteError) as caught:
        rollout_loop.run(STAGE, [], run_config, lambda report: None)
    assert "step 3: " in str(caught.value)
    assert f"{what} is not finite for prompt {spoilt[0]}" in str(caught.value)
    steps = Store(run_config.store)._checkpoint_steps(STAGE.id)
    assert max(steps) == 2
    monkeypatch.setattr(rollout_loop, "group_rewards", rewards)
    monkeypatch.setattr(TorchSampler, "generate", generate)
    rollout_loop.run(STAGE, [], run_config, lambda report: None)
    assert Store(run_config.store).finished(STAGE.id)


DOOMED = grpo(sft(BASE), seed=1, steps=3, sampler="torch")


def spoilt_trial(config):
    """Run a trial in which the reward of DOOMED is NaN."""
    rewards, doomed = rollout_loop.group_rewards, any(parse_stage(text) == DOOMED for text in config["stages"])

    def spoilt(*given):
        return rewards(*given) * (np.nan if doomed else 1)

    with mock.patch.object(rollout_loop, "group_rewards", spoilt):
        run_trial(config)


@pytest.mark.slow
@pytest.mark.parametrize("fail_fast", [False, True])
def test_a_failed_stage_blocks_its_descendants_and_the_rest_goes_on_unless_it_is_not_to(
    cluster, run_config, monkeypatch, fail_fast
):
    above = grpo(DOOMED, steps=1, sampler="torch")
    good = grpo(sft(BASE), seed=2, steps=1, sampler="torch")
    stages = [DOOMED, evaluate(DOOMED), above, good, evaluate(good)]
    store = Store(run_config.store)
    before = store.finished_ids()
    monkeypatch.setattr(scheduler, "run_trial", spoilt_trial)
    plan = Plan.of("test", stages, before)
    outcome = scheduler.run(plan, run_config.model_copy(update={"max_concurrent": 1}), fail_fast=fail_fast)
    why = outcome.failed[DOOMED.id]
    assert f"{DOOMED.label}, step 1: " in why
    assert "the reward is not finite for prompt" in why
    assert outcome.failed.keys() == {DOOMED.id}
    assert "Traceback" in json.loads(store.files.read(f"work/{DOOMED.id}/failure.json"))["traceback"]
    assert store.finished_ids() - before == (set() if fail_fast else {good.id, evaluate(good).id})
    assert outcome.blocked == {above.id} | ({good.id} if fail_fast else set())


def test_trials_whose_process_can_not_start_fail_in_one_sentence_each_and_end_nothing_else(
    cluster, run_config, monkeypatch, tmp_path
):
    """Let trials run a function of a module that no worker has."""
    (tmp_path / "only_on_the_head.py").write_text("def run_trial(config): pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(scheduler, "run_trial", importlib.import_module("only_on_the_head").run_trial)
    one, other = grpo(sft(BASE), seed=1, sampler="torch"), grpo(sft(BASE), seed=2, sampler="torch")
    plan = Plan.of("test", [one, other], Store(run_config.store).finished_ids())
    progress = Progress(plan, lambda stage: stage.flops)
    outcome = scheduler.run(plan, run_config.model_copy(update={"worker_failures": 0}), progress)
    assert outcome.failed.keys() == {one.id, other.id}
    for trial, why in outcome.failed.items():
        assert re.fullmatch(r".*: its process died on the node .*No module named 'only_on_the_head'", why), trial
    assert progress.counts["failed"] == 2
