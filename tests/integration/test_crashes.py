"""SIGKILL at any moment: a chain that is started again ends as if nothing had happened, to the last bit."""

import multiprocessing
import random
import signal

import pytest

from rayexp.store.artifacts import Store
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import files_of, logged, losses, weights_digest

FORKS = multiprocessing.get_context("forkserver")  # imports torch and Ray once for all lives
FORKS.set_forkserver_preload(["tests.fixtures.crash_harness"])


def exit_code(store, **death) -> int | None:
    """Run the chain in a process. Return its exit code: 0 if the chain is finished, or minus the signal that ended
    it."""
    process = FORKS.Process(target=crash_harness.live, args=(str(store),), kwargs=death)
    process.start()
    process.join(timeout=120)
    return process.exitcode


def result(folder):
    """Return everything that must not depend on what happened on the way."""
    store = Store(str(folder))
    trained = (crash_harness.BASE, crash_harness.TUNED)
    tables = [store.table(stage.id, "results.parquet") for stage in crash_harness.STAGES[1::2]]
    return (
        store.finished_ids(),
        {stage.id: weights_digest(store, stage) for stage in (*trained, crash_harness.REINFORCED)},
        [losses(store, stage) for stage in trained],
        logged(store, crash_harness.REINFORCED),
        [*tables, store.table(crash_harness.REINFORCED.id, "rollouts.parquet")],
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert exit_code(folder) == 0
    return result(folder)


@pytest.mark.slow
def test_killed_at_every_step_of_every_stage(undisturbed, tmp_path):
    assert {step.split()[0] for step in crash_harness.STEPS} == {"pretrain", "sft", "grpo"}
    for step in crash_harness.STEPS:
        assert exit_code(tmp_path, at_step=step) == -signal.SIGKILL, step
    assert exit_code(tmp_path) == 0
    assert result(tmp_path) == undisturbed
    hashes = undisturbed[1]
    assert hashes[crash_harness.REINFORCED.id] != hashes[crash_harness.TUNED.id], (
        "GRPO learnt nothing: this proved little of it"
    )


@pytest.mark.slow
def test_killed_at_operations_of_the_store(undisturbed, tmp_path):
    """Kill between any two files: in the middle of a checkpoint, of its removal, of publishing."""
    chance, killed = random.Random(0), 0
    while (code := exit_code(tmp_path, at_operation=chance.randint(12, 40))) != 0:
        assert code == -signal.SIGKILL
        killed += 1
        assert killed < 100, "no progress"
    assert killed >= 10
    assert result(tmp_path) == undisturbed
    store = Store(str(tmp_path))
    store.tidy()
    assert all(path.parts[0] == "stages" for path in files_of(store)), "torn attempts stay behind"
