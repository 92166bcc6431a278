"""Artifacts and checkpoints on a local folder and on another fsspec filesystem: whole, damaged, torn or misnamed."""

import io
import json
import math
import threading
from typing import Any, ClassVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayexp.store.artifacts import Store, StoreError
from rayexp.store.index import StoreIndex
from rayexp.store.manifest import DamagedError
from rayexp.store.probe import require_shareable
from rayexp.tasks.strings import StringTask
from rayexp.telemetry.metric_log import MetricLog
from tests.fixtures.factories import tiny_chain

STAGE = tiny_chain(StringTask(axis="composition")).pretrain
TABLE = pa.table({"step": [1, 2], "value": [0.5, 0.25]})
PLACE = f"stages/{STAGE.id}"
BAD_NAMES = ["../x", "stages/../../x", "/etc/passwd", "", ".", "a\\b", "a\0b"]


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid4().hex}")


@pytest.fixture
def artifact(tmp_path):
    """Return a folder like that of a finished stage."""
    folder = tmp_path / "artifact"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(bytes(range(256)))
    pq.write_table(TABLE, folder / "metrics.parquet")
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that makes a checkpoint's folder with its number in it."""

    def make(text):
        folder = tmp_path / f"checkpoint-{text}"
        folder.mkdir()
        (folder / "trainer.pt").write_text(text)
        return folder

    return make


def overwrite(store, path, data):
    """Overwrite a file, like a broken disk or an interrupted writer."""
    store.files.write(path, data)


def cut(store, path):
    overwrite(store, path, store.files.read(path)[:-7])


def latest(store):
    with store.latest_checkpoint(STAGE.id) as folder:
        return None if folder is None else (folder / "trainer.pt").read_text()


# Artifacts


def test_a_published_artifact_comes_back_whole(store, artifact):
    assert not store.finished(STAGE.id)
    assert store.finished_ids() == set()
    store.publish(STAGE, artifact, {"host": "here"})
    assert store.finished(STAGE.id)
    assert store.finished_ids() == {STAGE.id}
    assert StoreIndex(store).specs([STAGE.id]) == {STAGE.id: STAGE}
    assert store.table(STAGE.id, "metrics.parquet") == TABLE
    with store.model(STAGE.id) as folder:
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
        assert (folder / "model.safetensors").read_bytes() == bytes(range(256))
    assert json.loads(store.files.read(f"{PLACE}/provenance.json")) == {"host": "here"}


def test_a_snapshot_reads_each_manifest_once_and_stays_as_it_is(store, artifact, monkeypatch):
    other = STAGE.model_copy(update={"seed": STAGE.seed + 1})
    store.publish(STAGE, artifact, {})
    view = store.snapshot([STAGE.id, other.id])
    store.publish(other, artifact, {})
    read = []
    read_existing = store.files.read_existing
    monkeypatch.setattr(store.files, "read_existing", lambda names: read.extend(names) or read_existing(names))
    for _ in range(2):
        assert view.finished_ids([STAGE.id, other.id]) == {STAGE.id}
        assert [view.finished(each.id) for each in (STAGE, other)] == [True, False]
        assert view.table(STAGE.id, "metrics.parquet") == TABLE
    assert read == [f"{PLACE}/metrics.parquet"] * 2
    with pytest.raises(DamagedError, match="is not finished"):
        view.table(other.id, "metrics.parquet")
    assert store.finished_ids([STAGE.id, other.id]) == {STAGE.id, other.id}


class ThreadRank:
    """One of two ranks that are threads of this process."""

    ranks = node = 2
    slots: ClassVar[list[Any]] = [None, None]
    barrier = threading.Barrier(2, timeout=10)

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def gather(self, value: Any) -> list[Any]:
        self.slots[self.rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


def test_an_error_of_one_rank_is_raised_on_all(store, artifact, monkeypatch):
    """Let the second rank fail to write, and the first one to read. Otherwise the other rank would wait for ever."""

    def full(self, local, path):
        if threading.current_thread().name == "1":
            raise StoreError("no space is left")

    def failed(self, path, prefix, local):
        raise StoreError("no space is left")

    def save(rank):
        store.save_checkpoint(STAGE.id, 1, artifact, ThreadRank(rank))

    def load(rank):
        with store.fetched(PLACE, ranks=ThreadRank(rank)):
            raise AssertionError

    monkeypatch.setattr(Store, "put_folder", full)
    monkeypatch.setattr(Store, "_fetch", failed)
    for work in (save, load):
        errors: list[str] = []

        def run(rank, work=work, errors=errors):
            with pytest.raises(StoreError) as raised:
                work(rank)
            errors.append(str(raised.value))

        threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == ["no space is left"] * 2


def test_an_interrupted_attempt_is_written_over(store, artifact):
    store.files.write(f"{PLACE}/metrics.parquet", b"half of a ta")
    store.publish(STAGE, artifact, {})
    assert store.table(STAGE.id, "metrics.parquet") == TABLE


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"id": "x"}', None], ids=["empty", "torn", "list", "no-files", "gone"]
)
def test_an_artifact_without_a_whole_manifest_is_not_finished(store, artifact, damage):
    store.publish(STAGE, artifact, {})
    if damage is None:
        store.files.remove_file(f"{PLACE}/manifest.json")
    else:
        overwrite(store, f"{PLACE}/manifest.json", damage)
    assert not store.finished(STAGE.id)
    with pytest.raises(StoreError, match=f"{STAGE.id} is not finished"):
        store.table(STAGE.id, "metrics.parquet")


@pytest.mark.parametrize("damage", [b"", b"{"])
def test_all_ways_to_ask_agree_about_a_torn_manifest(store, artifact, damage):
    """Require that all readers agree with the plan on whether a stage is finished."""
    store.publish(STAGE, artifact, {})
    overwrite(store, f"{PLACE}/manifest.json", damage)
    assert store.finished_ids() == {stage_id for stage_id in [STAGE.id] if store.finished(stage_id)}


@pytest.mark.parametrize("name", ["metrics.parquet", "model/model.safetensors"])
def test_a_damaged_file_is_named(store, artifact, name):
    store.publish(STAGE, artifact, {})
    data = bytearray(store.files.read(f"{PLACE}/{name}"))
    data[len(data) // 2] ^= 1
    overwrite(store, f"{PLACE}/{name}", bytes(data))
    with pytest.raises(StoreError, match=f"{STAGE.id}/{name} is damaged"), store.fetched(PLACE):
        pass


def test_a_missing_file_is_named(store, artifact):
    store.publish(STAGE, artifact, {})
    store.files.remove_file(f"{PLACE}/metrics.parquet")
    with pytest.raises(DamagedError, match=r"metrics\.parquet is damaged: it is not there"):
        store.table(STAGE.id, "metrics.parquet")


# Checkpoints


def test_the_newest_checkpoint_wins_and_two_are_kept(store, checkpoint):
    assert latest(store) is None
    for step in (2, 10, 9):
        store.save_checkpoint(STAGE.id, step, checkpoint(str(step)))
    assert latest(store) == "10"
    store.save_checkpoint(STAGE.id, 11, checkpoint("11"))
    assert store.files.names(f"work/{STAGE.id}") == ["step-000000010", "step-000000011"]
    assert latest(store) == "11"


@pytest.mark.parametrize("file", ["manifest.json", "trainer.pt"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_torn_checkpoint_is_passed_over(store, checkpoint, file, how):
    for step in ("old-one", "new-one"):
        store.save_checkpoint(STAGE.id, len(step) + (step == "new-one"), checkpoint(step))
    path = f"work/{STAGE.id}/step-000000008/{file}"
    cut(store, path) if how == "cut" else store.files.remove_file(path)
    assert latest(store) == "old-one"
    store.save_checkpoint(STAGE.id, 8, checkpoint("again"))
    assert latest(store) == "again"


def test_publishing_drops_the_checkpoints_of_the_stage_only(store, artifact, checkpoint):
    store.save_checkpoint(STAGE.id, 1, checkpoint("one"))
    store.save_checkpoint("another", 1, checkpoint("two"))
    store.publish(STAGE, artifact, {})
    assert latest(store) is None
    with store.latest_checkpoint("another") as folder:
        assert folder is not None


# Names and roots


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_store_are_refused(store, name):
    files = store.files
    for call in (files.read, files.names, files.remove, files.modified, lambda name: files.write(name, b"")):
        with pytest.raises(StoreError, match="is not a path below the store"):
            call(name)


def test_ids_that_lead_out_of_the_store_are_refused(store, checkpoint):
    for call in (
        store.finished,
        lambda x: store.table(x, "t"),
        lambda x: store.save_checkpoint(x, 1, checkpoint("a")),
    ):
        with pytest.raises(StoreError, match="is not a path below the store"):
            call("../../x")


@pytest.mark.parametrize("name", ["../stolen", "/tmp/stolen", "model/../../stolen"])
def test_a_manifest_cannot_place_files_elsewhere(store, artifact, name):
    store.publish(STAGE, artifact, {})
    manifest = json.loads(store.files.read(f"{PLACE}/manifest.json"))
    manifest["files"] = {name: manifest["files"]["metrics.parquet"]}
    overwrite(store, f"{PLACE}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(StoreError, match="is not a path below the store"), store.fetched(PLACE):
        pass


def test_a_writable_store_is_left_as_it_was(store):
    require_shareable(store.files)
    assert not store.files.fs.find(store.files.root)


def test_an_unwritable_store_is_refused():
    with pytest.raises(StoreError, match="store='/proc/x' cannot be written"):
        require_shareable(Store("/proc/x").files)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(StoreError, match="is neither a folder nor an fsspec URL"):
        Store("nowhere://x")


# The metrics of a stage


def test_a_metric_log_is_continued_where_it_was_saved():
    metric_log = MetricLog(STAGE)
    metric_log.log(1, grpo={"loss": 2.0, "kl": math.nan}, rollout={"reward": 0.5})
    continued = MetricLog(STAGE, metric_log.to_bytes())
    for each in (metric_log, continued):
        each.log(2, grpo={"loss": 1.0})
    rows = pq.read_table(io.BytesIO(continued.to_bytes())).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (1, "grpo/loss", 2.0),
        (1, "rollout/reward", 0.5),
        (2, "grpo/loss", 1.0),
    ]


def test_an_empty_metric_log_can_be_saved_and_continued():
    empty = MetricLog(STAGE, MetricLog(STAGE).to_bytes()).to_bytes()
    assert pq.read_table(io.BytesIO(empty)).num_rows == 0
