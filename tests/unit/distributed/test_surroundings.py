"""An environment in which Ray would not start or not answer is refused in one sentence, before Ray is asked."""

import os
import shutil
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import ray
from ray._private import services
from ray._private.utils import check_version_info, validate_socket_filepath
from ray.dashboard.subprocesses.module import SubprocessModule
from ray.dashboard.subprocesses.utils import get_socket_path
from ray.dashboard.utils import get_all_modules

from rayexp.cli import run as sweep
from rayexp.distributed import runtime, surroundings
from rayexp.errors import RefusedError


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Set up a driver outside of any job, and forbid it to start Ray."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_TRAIN_V2_ENABLED", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # an earlier test in this process may have started Ray
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    monkeypatch.setattr(surroundings, "ANSWER_S", 1.0)
    monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda host: host)  # servers here are on loopback only


NO_ADDRESSES = ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head", "head:port", "127.0.0.1", "1:2:3:x"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("RAY_ADDRESS", address) for address in NO_ADDRESSES),
        ("RAY_TRAIN_V2_ENABLED", "0"),
        ("RAY_TRAIN_V2_ENABLED", "false"),
        ("RAY_TMPDIR", "/tmp/" + "x" * 70),
        ("TMPDIR", "/tmp/" + "ü" * 35),
        ("RAY_TMPDIR", "relative"),
        ("TMPDIR", "/dev/null"),
        ("RAY_TMPDIR", "/proc"),
    ],
)
def test_a_sweep_is_refused_in_one_sentence_with_the_variable_and_its_value(tmp_path, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert sweep.main(["--scale", "toy", "--seeds", "0", "--store", str(tmp_path / "store")]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"refused: {name}={value!r} ")
    assert "; set " in text
    assert text.count("\n") == 1


def refusal_of(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RefusedError) as refusal:
        runtime.connect()
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(f"RAY_ADDRESS={address!r} ")
    return str(refusal.value)


def test_a_port_where_nothing_answers_is_refused(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert f"leads to 127.0.0.1:{port}, where no Ray cluster answers" in refusal_of(f"127.0.0.1:{port}", monkeypatch)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_port_where_something_else_answers_is_refused(monkeypatch, speaks):
    """Use a web server, and a program that accepts connections and sends nothing."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        if speaks:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "where no Ray cluster answers" in refusal_of(f"127.0.0.1:{server.server_port}", monkeypatch)
        if speaks:
            server.shutdown()


def test_auto_without_a_cluster_is_refused(monkeypatch):
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    assert "finds no Ray cluster on this machine" in refusal_of("auto", monkeypatch)


@pytest.fixture
def head():
    """Yield the address of a server with Ray's protocol."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(("version", "python"), [("2.9.3", None), (None, "3.9.1")])
def test_a_cluster_with_other_versions_is_refused_with_both(head, monkeypatch, version, python):
    mine = {"ray_version": ray.__version__, "python_version": ".".join(map(str, sys.version_info[:3]))}
    theirs = {"ray_version": version or mine["ray_version"], "python_version": python or mine["python_version"]}
    monkeypatch.setattr(ray, "init", lambda **_: check_version_info(theirs, "node 1.2.3.4"))
    text = refusal_of(head, monkeypatch)
    assert f"Ray: {theirs['ray_version']} Python: {theirs['python_version']}" in text
    assert f"Ray: {mine['ray_version']} Python: {mine['python_version']}" in text


@pytest.mark.parametrize("address", [None, "", "local"])
def test_no_address_is_a_cluster_of_ones_own(monkeypatch, address):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)

    def init(**settings):
        raise NotImplementedError(settings["address"])

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(NotImplementedError, match=r"^local$"):
        runtime.connect()


def test_the_longest_folder_that_is_allowed_is_the_longest_that_ray_can_use(monkeypatch):
    root = Path(f"/tmp/r{os.getpid()}")  # pytest's own folders are too long already
    within = f"ray-{os.getuid()}/ray"
    room = surroundings.SOCKET_PATH_BYTES - len(os.fsencode(surroundings._socket(f"{root}/{within}")))
    monkeypatch.setenv("RAY_TMPDIR", f"{root}/" + "x" * (room - 1))
    surroundings.require_folder()
    shutil.rmtree(root)
    validate_socket_filepath(surroundings._socket(f"{os.environ['RAY_TMPDIR']}/{within}"))
    monkeypatch.setenv("RAY_TMPDIR", f"{root}/" + "x" * room)
    with pytest.raises(RefusedError, match="is 1 bytes too long"):
        surroundings.require_folder()
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath(surroundings._socket(f"{os.environ['RAY_TMPDIR']}/{within}"))
    assert not root.exists()


def test_the_longest_socket_is_one_of_the_dashboards(tmp_path):
    modules = get_all_modules(SubprocessModule)
    longest = max((get_socket_path(".", module.__name__) for module in modules), key=len)
    assert surroundings._socket("/x").rpartition("/")[2] == longest.removeprefix("./")


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Set a folder for Ray, whose length does not matter."""
    monkeypatch.setattr(surroundings, "SOCKET_PATH_BYTES", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


def test_a_folder_of_somebody_else_is_refused_with_its_owner(short, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    (short / "ray").mkdir()
    monkeypatch.setattr(surroundings, "TemporaryFile", refuse)
    monkeypatch.setattr(os, "getuid", lambda: 2**30)
    with pytest.raises(RefusedError, match=r"cannot be written \(Permission denied; .*/ray belongs to "):
        surroundings.require_folder()


def test_a_full_disk_is_refused(short, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 2**21))
    with pytest.raises(RefusedError, match="has 2 MiB left on its disk and needs 32"):
        surroundings.require_folder()


def test_a_folder_with_room_is_used(short):
    surroundings.require_folder()
    assert list((short / "ray").iterdir()) == []
