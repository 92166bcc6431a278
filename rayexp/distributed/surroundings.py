"""Checks before Ray starts: an environment in which it would not start or not answer is refused in one sentence."""

import atexit
import os
import pwd
import shlex
import shutil
import sys
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp

import grpc
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private.services import canonicalize_bootstrap_address
from ray.train.v2._internal.constants import V2_ENABLED_ENV_VAR, is_v2_enabled

from rayexp.errors import RefusedError, first_line

#: Characters that Ray (2.60) loses from the command line of a worker, because it quotes the line by one set of rules
#: and splits it by another.
LOST = "'\"\\"
#: Most bytes of a Unix socket's path, its final zero not counted.
SOCKET_PATH_BYTES = 107
#: Room for Ray's logs and sockets in a sweep of a few hours.
FREE_BYTES = 32 * 2**20
#: Seconds in which the head of a cluster has to answer. Ray itself tries for two minutes, then ends the process.
ANSWER_S = 10.0


def require_train() -> None:
    """Raise RefusedError if the environment switches off Ray Train V2."""
    if not is_v2_enabled():
        value = os.environ[V2_ENABLED_ENV_VAR]
        raise RefusedError(f"{V2_ENABLED_ENV_VAR}={value!r} switches off Ray Train V2, which is used here; set it to 1")


def require_cluster(address: str) -> None:
    """Raise RefusedError unless a Ray cluster, or something that speaks its protocol, answers at RAY_ADDRESS."""

    def refusal(why: str) -> RefusedError:
        return RefusedError(
            f"RAY_ADDRESS={address!r} {why}; set it to HOST:PORT of a cluster's head, to auto for the one on this "
            "machine, or to nothing for a new one"
        )

    if "://" in address:
        raise refusal("is a URL")
    try:
        found = canonicalize_bootstrap_address(address)
    except ValueError:
        raise refusal("is not an address") from None
    except OSError:
        raise refusal("finds no Ray cluster on this machine") from None
    if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):  # only Ray has the certificates
        return
    with grpc.insecure_channel(str(found), options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise refusal(f"leads to {found}, where no Ray cluster answers") from None


def use_plain_path() -> None:
    """Set ``sys.executable`` to a path without blanks for the rest of the process, because Ray hands it to bash
    unquoted.

    Raises RefusedError if Ray's own path has characters that it loses, because Ray would wait for its workers for ever.
    """
    place = str(Path(ray.__file__).parent)
    if set(LOST) & set(place):
        raise RefusedError(f"Ray is installed in {place}; install it in a path without any of {' '.join(LOST)}")
    if shlex.quote(sys.executable) == sys.executable:
        return
    link = Path(mkdtemp(prefix="rayexp-python-", dir="/tmp"), "python")  # TMPDIR may have a blank itself
    atexit.register(shutil.rmtree, link.parent)
    python = Path(sys.executable)
    link.symlink_to(python.parents[1])
    sys.executable = str(link / python.parent.name / python.name)


def folder() -> Path:
    """Return the folder for Ray's files, which only this account can enter: RAY_TMPDIR if it is such a folder, else
    ``ray-UID`` in it.

    Ray itself makes folders that everybody can write to, also those of sessions, with their logs and sockets.
    """
    parent = Path(get_default_ray_temp_dir()).parent
    if parent.is_dir() and parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o077:
        return parent
    return parent / f"ray-{os.getuid()}"


def require_folder() -> None:
    """Raise RefusedError unless a cluster on this machine can have its logs and sockets where Ray would put them."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    place = str(folder() / "ray")

    def refusal(why: str) -> RefusedError:
        where = (
            f"{name}={os.environ[name]!r} puts Ray's folder at {place!r}, which" if name else f"Ray's folder {place!r}"
        )
        return RefusedError(f"{where} {why}; set RAY_TMPDIR to a folder of yours with a short absolute path and room")

    if not os.path.isabs(place):
        raise refusal("is relative, so that each process would have another")
    if (excess := len(os.fsencode(_socket(place))) - SOCKET_PATH_BYTES) > 0:
        raise refusal(f"is {excess} bytes too long for the sockets in it")
    try:
        os.makedirs(place, exist_ok=True)
        with TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        raise refusal(f"cannot be written ({error.strerror or first_line(error)}{_owner(place)})") from error
    if (free := shutil.disk_usage(place).free) < FREE_BYTES:
        raise refusal(f"has {free / 2**20:.0f} MiB left on its disk and needs {FREE_BYTES / 2**20:.0f}")


def _socket(folder: str) -> str:
    """Return the longest path that Ray gives a socket; its session is named after the time and this process."""
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    return f"{folder}/{session}/sockets/dash_TaskEventsHead"  # of a process of the dashboard


def _owner(folder: str) -> str:
    """Return who owns the folder, or its nearest parent that exists, if it is not this account."""
    there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    uid = there.stat().st_uid
    if uid == os.getuid():
        return ""
    try:
        return f"; {there} belongs to {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"; {there} belongs to the user id {uid}"
