"""What the clusters of this machine tell a stranger: a process that has no token, or another account."""

import http.client
import importlib
import ipaddress
import os
import pkgutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
from ray.core import generated

ANSWER_S = 10.0
Address = tuple[str, int]


def answers(root: psutil.Process) -> list[str]:
    """Return what a process and its descendants would tell a stranger, apart from metrics; it should be nothing."""
    before = set(listening(root))
    found = [f"{ip}:{port} {why}" for ip, port in sorted(before) for why in _answers((ip, port))]
    after = {f"{ip}:{port}" for ip, port in listening(root)}
    return [what for what in found if what.split()[0] in after]  # a worker may have ended meanwhile


def listening(root: psutil.Process) -> Iterator[Address]:
    """Yield every address of the network at which a process or a descendant of it listens."""
    for connection in _connections(root, "inet"):
        if connection.status == psutil.CONN_LISTEN and connection.type == socket.SOCK_STREAM:
            address = ipaddress.ip_address(connection.laddr.ip)
            yield str(getattr(address, "ipv4_mapped", None) or address), connection.laddr.port


def sockets_for_others(root: psutil.Process) -> list[str]:
    """Return the sockets in the file system of a process and its descendants that another account can reach."""
    paths = {connection.laddr for connection in _connections(root, "unix") if connection.laddr}
    return [path for path in paths if not any(map(_private, Path(path).parents))]


def session(root: psutil.Process) -> Path:
    """Return the folder of the Ray session whose raylet descends from a process."""
    paths = {Path(connection.laddr) for connection in _connections(root, "unix")}
    (found,) = {path.parents[1] for path in paths if path.name == "raylet"}
    return found


def require_refusal(dashboard: str) -> None:
    """Fail unless ``ray job submit`` of a stranger is refused."""
    command = [Path(sys.executable).parent / "ray", "job", "submit", "--address", dashboard, "--", "true"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr


def place(url: str) -> Address:
    """Return host and port of an address that a person opens."""
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def page(address: Address, path: str, **headers: str) -> tuple[int, str]:
    """Ask for a page; return status and type of the answer, 0 from what speaks no HTTP."""
    connection = http.client.HTTPConnection(*address, timeout=ANSWER_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", "")
    except (http.client.HTTPException, OSError):
        return 0, ""
    finally:
        connection.close()


def _answers(address: Address) -> Iterator[str]:
    status, kind = page(address, "/api/version")
    if not ipaddress.ip_address(address[0]).is_loopback:
        yield "listens to other machines"
    elif status:
        if status != 401 and not kind.startswith("text/plain; version="):  # the latter is Prometheus' format
            yield f"answers with {status}"
    else:
        codes = _called(address)
        if grpc.StatusCode.UNAUTHENTICATED not in codes.values():
            yield "asks for no token"
        if answered := [path for path, code in codes.items() if code not in REFUSED]:
            yield f"answers {answered}"


REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)


def _called(address: Address) -> dict[str, grpc.StatusCode]:
    """Call all remote procedures at once, each with an empty request."""
    with grpc.insecure_channel(f"{address[0]}:{address[1]}") as channel:
        calls = {path: channel.unary_unary(path).future(b"", timeout=ANSWER_S) for path in _procedures()}
        return {path: call.code() for path, call in calls.items()}


def _procedures() -> list[str]:
    """Return the path of every remote procedure of Ray's, those for C++ alone by hand."""
    names = [module.name for module in pkgutil.iter_modules(generated.__path__) if module.name.endswith("_pb2")]
    files = [importlib.import_module(f"{generated.__name__}.{name}").DESCRIPTOR for name in names]
    services = [service for file in files for service in file.services_by_name.values()]
    found = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    return found + [f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull")]


def _connections(root: psutil.Process, kind: str) -> Iterator[Any]:
    for process in [root, *root.children(recursive=True)]:
        try:
            yield from process.net_connections(kind)
        except psutil.Error:  # it ended meanwhile
            continue


def _private(folder: Path) -> bool:
    return not stat.S_IMODE(folder.stat().st_mode) & 0o077
