"""The whole pipeline with its store on an S3 server that answers with errors, resets and pauses now and then."""

import pytest
import s3fs

from rayexp.store.artifacts import Store, StoreError
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import logged, weights_digest
from tests.fixtures.s3 import S3Server


@pytest.fixture(scope="module")
def server():
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        server.make_bucket("study")
        s3fs.S3FileSystem.clear_instance_cache()  # the cache remembers the server of another test
        yield server


def tables(store: Store):
    """Return curves and results."""
    return (
        [logged(store, stage) for stage in crash_harness.STAGES[::2]],
        [store.table(stage.id, "results.parquet") for stage in crash_harness.STAGES[1::2]],
    )


@pytest.mark.slow
def test_a_chain_on_s3_under_faults_ends_as_on_the_local_disk(server, tmp_path):
    remote, local = Store("s3://study/runs"), Store(str(tmp_path))
    for kind, count in (("500", 6), ("reset", 6), ("slow", 3)):
        server.upset(kind, count=count)
    crash_harness.live(remote.url)
    assert server.calm() == 15
    crash_harness.live(local.url)
    assert remote.finished_ids() == local.finished_ids() == {stage.id for stage in crash_harness.STAGES}
    for stage in (crash_harness.BASE, crash_harness.TUNED, crash_harness.REINFORCED):
        assert weights_digest(remote, stage) == weights_digest(local, stage)
    assert tables(remote) == tables(local)
    assert not remote.damaged(remote.finished_ids())
    assert remote.files.names("work") == []


def test_a_chain_whose_access_is_taken_away_stops_with_the_cause_and_goes_on_later(server):
    store = Store("s3://study/refused")
    server.upset("403")
    with pytest.raises(StoreError, match="PermissionError"):
        crash_harness.live(store.url)
    server.calm()
    assert store.finished_ids() == set()
    crash_harness.live(store.url)
    assert store.finished_ids() == {stage.id for stage in crash_harness.STAGES}
