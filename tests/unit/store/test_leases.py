"""Leases between drivers of one store: one at a time, taken over when their driver is silent, checked before writes."""

import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest

from rayexp.config import RunConfig
from rayexp.distributed.learner_actor import LearnerActor
from rayexp.execution import rollout_loop, supervised
from rayexp.rl.learner import GRPOLearner
from rayexp.store.artifacts import Store
from rayexp.store.filesystem import Files
from rayexp.store.leases import (
    BEAT_S,
    EXPIRY_S,
    LONG_GONE_S,
    Lease,
    LeaseLostError,
    Leases,
    NotSharedError,
    has_ended,
    newest,
    process_identity,
)
from rayexp.sweep.plan import Trial
from rayexp.sweep.scheduler import PlanSearcher
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain

STAGES = tiny_chain(StringTask(axis="composition"))
STAGE = STAGES.pretrain
FAST: dict[str, Any] = {"beat_s": 0.1, "expiry_s": 0.5}


@pytest.fixture(params=["local", "memory"])
def files(request, tmp_path):
    return Files(str(tmp_path / "root") if request.param == "local" else f"memory://{uuid4().hex}", timeout_s=20)


def dead(files, **settings):
    """Return the leases of a driver that has stopped. It beats no more, and gives nothing back."""
    leases = Leases(files, **{**FAST, **settings})
    leases.beat()
    return leases


def taken(leases: Leases, work: str) -> Lease:
    """Take a free lease."""
    lease = leases.take(work)
    assert lease is not None
    return lease


def test_one_driver_has_a_lease_until_it_gives_it_back(files):
    with Leases(files, **FAST) as one, Leases(files, **FAST) as two:
        lease = one.take("work")
        assert lease == Lease("work", 1, one.driver)
        assert Lease.parse(str(lease)) == lease
        assert two.take("work") is None
        assert two.take("other work") is not None
        assert two.holder("work") == one.driver
        one.release("work")
        assert two.take("work") is not None
        assert one.take("work") is None
    assert files.names("leases") == []
    assert files.names("drivers") == []


def test_of_many_drivers_that_want_a_lease_at_once_one_gets_it(tmp_path):
    drivers = [dead(Files(str(tmp_path)), expiry_s=60) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            work = f"work-{number}"
            assert sum(lease is not None for lease in pool.map(lambda d, work=work: d.take(work), drivers)) == 1


def test_a_lease_that_was_given_back_since_it_was_seen_is_not_taken_over(files, monkeypatch):
    """Let its driver leave, and another driver take the same number, while a third one still looks at the old lease."""
    with Leases(files) as other, Leases(files) as third:
        first = Leases(files).__enter__()
        assert first.take("work")
        taken = []

        def dead(lease, look=third._dead):
            first.__exit__(None, None, None)
            taken.append(other.take("work"))
            return look(lease)

        monkeypatch.setattr(third, "_dead", dead)
        assert third.take("work") is None
        taken[0].require_held(files)


def test_a_lease_outlives_its_expiry_while_its_driver_lives_and_is_taken_over_when_it_does_not(files):
    gone = dead(files)
    old = taken(gone, "work")
    with Leases(files, **FAST) as living, Leases(files, **FAST) as next_one:
        kept = taken(living, "kept")
        deadline = time.monotonic() + 20
        while (lease := next_one.take("work")) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert lease.number == old.number + 1
        time.sleep(3 * FAST["expiry_s"])
        assert next_one.take("kept") is None
        kept.require_held(files)
        lease.require_held(files)
        with pytest.raises(LeaseLostError, match=f"the driver {gone.driver} has lost its lease on work"):
            old.require_held(files)
        assert newest(files, "work") == lease


def test_a_driver_that_never_beat_again_is_not_waited_for(files):
    """Remove its heartbeat file, like the first driver that found it silent."""
    gone = dead(files)
    gone.take("work")
    files.remove_file(f"drivers/{gone.driver}")
    with Leases(files, **FAST) as leases:
        assert leases.take("work") is not None


def test_a_driver_whose_process_this_machine_sees_ended_is_not_waited_for(files):
    """Compare with a driver of another machine, whose process may have the same number."""
    gone, elsewhere, other = (dead(files, expiry_s=EXPIRY_S) for _ in range(3))
    gone.take("work")
    elsewhere.take("other work")
    with subprocess.Popen(["sleep", "60"]) as process:
        running = process_identity(process.pid)
        files.write(f"drivers/{gone.driver}", f"1 {running}".encode())
        files.write(f"drivers/{elsewhere.driver}", f"1 another-boot {running.partition(' ')[2]}".encode())
        assert other.take("work") is None
        process.kill()
    assert taken(other, "work").number == 2
    assert other.take("other work") is None


def test_a_process_that_got_the_number_of_one_that_ended_is_another():
    assert not has_ended(process_identity(os.getpid()))
    assert has_ended(f"{process_identity(os.getpid())}0")
    assert not has_ended("")


class Clock:
    """A clock that tests advance."""

    now = 0.0

    def __call__(self):
        return self.now


class Late:
    """A store that shows the writes of others as they were up to ``lag_s`` ago, in content and time stamps, like a
    cache of attributes."""

    def __init__(self, files, clock, lag_s):
        self._files, self._clock, self._lag_s = files, clock, lag_s
        self._cached = {}

    def __getattr__(self, name):
        return getattr(self._files, name)

    def _late(self, key, look):
        if key not in self._cached or self._clock.now - self._cached[key][0] >= self._lag_s:
            self._cached[key] = (self._clock.now, look())
        return self._cached[key][1]

    def read_existing(self, names):
        return self._late(("read", *names), lambda: self._files.read_existing(names))

    def modified(self, name):
        return self._late(("modified", name), lambda: self._files.modified(name)) - timedelta(seconds=self._lag_s)


@pytest.mark.parametrize("lag_s", [0, 45, EXPIRY_S - 2 * BEAT_S])
def test_a_driver_that_lives_is_not_thought_dead_by_a_store_that_shows_its_beats_late(files, lag_s):
    clock = Clock()
    living = Leases(files, clock=clock)
    other = Leases(cast(Files, Late(files, clock, lag_s)), clock=clock)
    living.beat()
    other.beat()
    assert living.take("work")
    for _ in range(100):
        assert other.take("work") is None
        clock.now += BEAT_S
        living.beat()


def test_a_driver_is_dead_when_it_was_watched_for_long_and_did_not_beat(files):
    clock = Clock()
    gone, other = dead(files), Leases(files, clock=clock)
    other.beat()
    assert gone.take("work")
    assert other.take("work") is None, "one look tells nothing"
    clock.now += EXPIRY_S
    assert other.take("work") is None
    gone.beat()
    clock.now += 1
    assert other.take("work") is None
    clock.now += EXPIRY_S + 1
    assert taken(other, "work").number == 2
    assert files.names("drivers") == [other.driver]


def test_a_driver_that_is_long_gone_by_the_clock_of_the_store_is_not_watched(tmp_path):
    files = Files(str(tmp_path))
    gone, other = dead(files), Leases(files)
    other.beat()
    assert gone.take("work")
    heart = tmp_path / "drivers" / gone.driver
    for silent_s, taken in ((LONG_GONE_S - 60, False), (LONG_GONE_S + 60, True)):
        then = (tmp_path / "drivers" / other.driver).stat().st_mtime - silent_s
        os.utime(heart, (then, then))
        assert bool(other.take("work")) == taken


@pytest.mark.parametrize("written", [0, 1, -1])
def test_a_lease_that_is_just_being_written_is_held_until_nothing_more_comes(files, written):
    clock = Clock()
    writer, other = dead(files), Leases(files, clock=clock)
    other.beat()
    files.write("leases/work.000001", writer.driver.encode()[:written])
    assert other.take("work") is None
    clock.now += EXPIRY_S + 1
    assert taken(other, "work").number == 2, "the writer died in the middle"


@pytest.fixture
def another(tmp_path):
    """Return a store that simulates the same address on another machine."""
    return Files(str(tmp_path / "another"), timeout_s=20)


def test_a_process_sees_that_its_store_is_not_its_drivers(files, another):
    with Leases(files, **FAST) as leases:
        lease = taken(leases, "work")
        lease.require_shared(files)
        for look in (lease.require_shared, lease.require_held):
            with pytest.raises(NotSharedError, match=f"is not that of the driver {leases.driver}: no driver holds"):
                look(another)


def test_a_lease_that_another_driver_has_is_lost_and_not_unshared(files):
    gone = dead(files, expiry_s=0.0)
    old = taken(gone, "work")
    new = dead(files, expiry_s=-1.0)
    new.take("work")
    for look in (old.require_shared, old.require_held):
        with pytest.raises(
            LeaseLostError, match=f"{gone.driver} has lost its lease on work: the driver {new.driver} holds it now"
        ):
            look(files)
    given_back = taken(new, "other work")
    new.release("other work")
    for look in (given_back.require_shared, given_back.require_held):
        with pytest.raises(
            LeaseLostError, match=f"{new.driver} has lost its lease on other work: its sweep, or the trial, has ended"
        ):
            look(files)


def test_training_does_not_begin_in_a_store_that_is_not_the_drivers(another, tmp_path):
    """Try the first stage of a chain, and a GRPO stage. Nothing is written and nothing is trained."""
    with Leases(Files(str(tmp_path / "store")), **FAST) as leases:
        settings = {"store": another.url, "lease": str(leases.take("work"))}
        with pytest.raises(NotSharedError):
            supervised.run_in_process([STAGE], RunConfig(**settings), lambda report: pytest.fail("it trained"))
        with pytest.raises(NotSharedError):
            rollout_loop.run(STAGES.grpo, [], RunConfig(**settings), lambda report: pytest.fail("it trained"))
        with pytest.raises(NotSharedError):
            LearnerActor().begin(STAGES.grpo.model_dump_json(), RunConfig(**settings).model_dump_json(), GRPOLearner)
    assert another.empty()


def test_whoever_lost_its_lease_can_write_neither_a_checkpoint_nor_an_artifact(files, tmp_path):
    gone = dead(files, expiry_s=0.0)
    lost = Store(files.url, str(gone.take("work")), 20)
    held = dead(files, expiry_s=-1.0)
    mine = Store(files.url, str(held.take("work")), 20)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "trainer.pt").write_text("lost")
    for write in (lambda: lost.save_checkpoint(STAGE.id, 1, folder), lambda: lost.publish(STAGE, folder, {})):
        with pytest.raises(LeaseLostError):
            write()
    assert not lost.finished(STAGE.id)
    (folder / "trainer.pt").write_text("mine")
    mine.save_checkpoint(STAGE.id, 1, folder)
    with mine.latest_checkpoint(STAGE.id) as found:
        assert found is not None
        assert (found / "trainer.pt").read_text() == "mine"
    mine.publish(STAGE, folder, {})
    assert json.loads(files.read(f"stages/{STAGE.id}/manifest.json"))["id"] == STAGE.id


def test_a_process_that_wakes_in_the_middle_of_publishing_is_stopped_before_the_manifest(tmp_path, monkeypatch):
    """Lose the lease between the first file and the last."""
    gone = dead(Files(str(tmp_path / "root")), expiry_s=0.0)
    lost = Store(str(tmp_path / "root"), str(gone.take("work")), 20)
    put_folder = Store.put_folder

    def slowly(self, local, path):
        put_folder(self, local, path)
        if self is lost:
            assert dead(self.files, expiry_s=-1.0).take("work") is not None

    monkeypatch.setattr(Store, "put_folder", slowly)
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "metrics.parquet").write_bytes(b"x")
    with pytest.raises(LeaseLostError):
        lost.publish(STAGE, tmp_path / "artifact", {})
    assert lost.files.names("stages") == []


def test_two_searchers_on_one_store_hand_out_each_trial_once(tmp_path, monkeypatch):
    """Let each take the other's finished trials as finished. Both come to their end."""
    kinds = [STAGES.pretrain, STAGES.sft, STAGES.grpo]
    chain = [
        Trial(stage.id, "train", (stage,), (stage.parent.id,) if stage.parent else (), stage.label) for stage in kinds
    ]
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "x").write_bytes(b"x")
    ran: list[str] = []
    wrong: list[str] = []

    def drive(name):
        store = Store(str(tmp_path / "store"))
        with Leases(store.files, **FAST) as leases:
            searcher = PlanSearcher(chain, RunConfig(store=store.url), store, leases)
            for number in range(10_000):
                config = searcher.suggest(f"{name}-{number}")
                if config == "FINISHED":
                    return
                if config is None:
                    time.sleep(0.01)
                    continue
                assert isinstance(config, dict)
                ran.append(config["trial"])
                stage = next(stage for stage in kinds if stage.id == config["trial"])
                if stage.parent and not store.finished(stage.parent.id):
                    wrong.append(stage.id)
                Store(store.url, json.loads(config["run_config"])["lease"]).publish(stage, artifact, {})
                searcher.on_trial_complete(f"{name}-{number}", {})
            wrong.append(f"{name} did not end")

    monkeypatch.setattr("rayexp.sweep.scheduler.SECONDS_BETWEEN_LOOKS", 0.02)
    drivers = [threading.Thread(target=drive, args=(name,)) for name in "ab"]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(timeout=60)
    assert not wrong
    assert ran == [stage.id for stage in kinds]
