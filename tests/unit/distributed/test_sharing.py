"""Before training, every node of a cluster checks that it sees the driver's file in the store."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from rayexp.distributed import sharing
from rayexp.store.filesystem import Files, StoreError

NODES = {"aa" * 28: "192.0.2.1", "bb" * 28: "192.0.2.2", "cc" * 28: "192.0.2.3"}


@pytest.fixture
def files(tmp_path):
    return Files(str(tmp_path / "store"))


@pytest.fixture
def cluster(monkeypatch):
    """Fake Ray with nodes. Return a mapping in which tests give a node a store of its own, by URL, or the error that
    ends its process."""
    seen: dict[str, Any] = {}

    class Task:
        def options(self, scheduling_strategy, **_):
            return SimpleNamespace(remote=lambda url, probe: (scheduling_strategy.node_id, url, probe))

    def get(answer):
        node, url, probe = answer
        if isinstance(found := seen.get(node, url), Exception):
            raise found
        return sharing.find_problem(found, probe)

    alive = [{"NodeID": node, "NodeManagerAddress": address, "Alive": True} for node, address in NODES.items()]
    monkeypatch.setattr("ray.nodes", lambda: [*alive, {"Alive": False}])
    monkeypatch.setattr("ray.remote", lambda function: Task())
    monkeypatch.setattr(
        "ray.wait", lambda answers, **_: ([each for each in answers if seen.get(each[0]) != "late"], [])
    )
    monkeypatch.setattr("ray.get", get)
    return seen


def test_a_store_that_all_nodes_share_is_left_as_it_was(cluster, files):
    sharing.require_shared(files)
    assert files.empty()


def test_a_store_that_some_node_does_not_share_is_refused_in_one_sentence(cluster, files, tmp_path):
    cluster["bb" * 28] = str(tmp_path / "another")
    with pytest.raises(StoreError) as refusal:
        sharing.require_shared(files)
    assert str(refusal.value) == (
        f"store={files.url!r} is not shared by 1 of 3 nodes, such as 192.0.2.2: what was written here is not there; "
        "use a folder or a bucket that every machine reaches"
    )
    assert files.empty()


@pytest.mark.parametrize("trouble", ["late", WorkerCrashedError()])
def test_a_node_that_does_not_answer_is_warned_of(cluster, files, caplog, trouble):
    cluster["cc" * 28] = trouble
    sharing.require_shared(files)
    assert "cannot tell whether the node 192.0.2.3 shares the store" in caplog.text


def test_one_node_is_not_asked(cluster, files, monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "aa" * 28, "NodeManagerAddress": "192.0.2.1", "Alive": True}])
    cluster["aa" * 28] = "nosuch://place"
    sharing.require_shared(files)


def test_what_a_node_sees_is_compared(files):
    files.write("probe", b"of another")
    assert sharing.find_problem(files.url, "probe") == "there is something else"
    assert "is neither a folder nor an fsspec URL" in sharing.find_problem("nosuch://place", "probe")
