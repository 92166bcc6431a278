"""Refuse an environment in which Ray would not start or not answer, in one sentence, before it is asked to."""

import os
import pwd
import shutil
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile

import grpc
from ray._private.services import canonicalize_bootstrap_address
from ray.train.v2._internal.constants import V2_ENABLED_ENV_VAR, is_v2_enabled

from rayexp.distributed import access
from rayexp.errors import RefusedError, first_line

#: Bytes of a Unix socket's path, its final zero not counted.
SOCKET_PATH_BYTES = 107
#: Ray's logs and sockets of a sweep of a few hours.
FREE_BYTES = 32 * 2**20
#: Seconds until the head of a cluster has to answer; Ray itself tries for two minutes and ends the process then.
ANSWER_S = 10.0


def require_train() -> None:
    """Raise RefusedError where Ray Train is told to be an earlier version of itself."""
    if not is_v2_enabled():
        value = os.environ[V2_ENABLED_ENV_VAR]
        raise RefusedError(f"{V2_ENABLED_ENV_VAR} is {value!r}, which switches off the Ray Train in use; allowed: 1")


def require_cluster(address: str) -> None:
    """Raise RefusedError unless a Ray cluster, or something that speaks its protocol, answers at RAY_ADDRESS."""
    if "://" in address:
        raise _refused_address(address, "a URL")
    try:
        found = canonicalize_bootstrap_address(address)
    except ValueError:
        raise _refused_address(address, "which is no address") from None
    except (ConnectionError, OSError):
        raise _refused_address(address, "and there is no Ray cluster on this machine") from None
    if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):  # else only Ray has the certificates
        _require_answer(address, str(found))


def _require_answer(address: str, found: str) -> None:
    with grpc.insecure_channel(found, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise _refused_address(address, f"and no Ray cluster answers at {found}") from None


def _refused_address(address: str, why: str) -> RefusedError:
    return RefusedError(
        f"RAY_ADDRESS is {address!r}, {why}; allowed: HOST:PORT of a cluster's head, auto for the one on this machine, "
        "or nothing for a new one"
    )


def require_folder() -> None:
    """Raise RefusedError unless a cluster on this machine can have its logs and sockets where Ray would put them."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = str(access.folder() / "ray")

    def refusal(why: str) -> RefusedError:
        where = f"{name} is {os.environ[name]!r}, where Ray's folder {folder!r}" if name else f"Ray's folder {folder!r}"
        return RefusedError(f"{where} {why}; allowed: a RAY_TMPDIR with a short absolute path, room, and this owner")

    if not os.path.isabs(folder):
        raise refusal("is relative, so every process would have another")
    if (excess := len(os.fsencode(_socket(folder))) - SOCKET_PATH_BYTES) > 0:
        raise refusal(f"is {excess} bytes too long for the sockets in it")
    try:
        os.makedirs(folder, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise refusal(f"cannot be written ({error.strerror or first_line(error)}{_owner(folder)})") from error
    if (free := shutil.disk_usage(folder).free) < FREE_BYTES:
        raise refusal(f"has {free / 2**20:.0f} MiB left on its disk and needs {FREE_BYTES / 2**20:.0f}")


def _socket(folder: str) -> str:
    """Return the longest path that Ray gives a socket; its session is named after the time and this process."""
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    return f"{folder}/{session}/sockets/dash_TaskEventsHead"  # of a process of the dashboard


def _owner(folder: str) -> str:
    """Return whose folder it is, or the one above it that is there, if it is somebody else's."""
    there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    uid = there.stat().st_uid
    if uid == os.getuid():
        return ""
    try:
        return f"; {there} belongs to {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"; {there} belongs to the user id {uid}"
