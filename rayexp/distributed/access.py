"""Access to a cluster that is started on this machine: for this account alone, over loopback, with a token.

A cluster that RAY_ADDRESS names is left as it is.
"""

import atexit
import logging
import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.parameter import RayParams
from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

from rayexp.distributed import surroundings
from rayexp.errors import RefusedError

log = logging.getLogger(__name__)

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
RAYS_OWN = Path("~/.ray/auth_token")
#: Ray's default port for ``ray://``.
CLIENT_PORT = 10001


def restrict() -> str:
    """Restrict the cluster that this process starts next to this account. Return where its token is; empty without one.

    The cluster requires the user's token if RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set, Ray's own if there is one and
    RAY_AUTH_MODE is set, otherwise a new one. A new token is in a file that only this account can read. The environment
    has only the file's path, because a program may log its environment.
    """
    asked = MODE in os.environ
    if not _close():
        return ""
    if TOKEN in os.environ:
        return TOKEN
    if TOKEN_PATH not in os.environ:
        if asked and RAYS_OWN.expanduser().exists():
            return str(RAYS_OWN)
        os.environ[TOKEN_PATH] = _new_token()
        AuthenticationTokenLoader.instance().reset_cache()
    return os.environ[TOKEN_PATH]


def prepare_head(parameters: RayParams, head: bool) -> None:
    """Restrict the head of ``make head`` to this account, and print its address. ``ray start`` calls this function,
    because RAY_START_HOOK names it.

    The head requires Ray's own token, which ``ray job submit`` of this account finds.
    """
    if parameters.ray_client_server_port == CLIENT_PORT:
        parameters.ray_client_server_port = None
    surroundings.use_plain_path()
    port = _free_port(parameters.dashboard_port or DEFAULT_DASHBOARD_PORT)
    parameters.dashboard_port = port  # pyright: ignore[reportAttributeAccessIssue]
    settings = f"RAY_API_SERVER_ADDRESS=http://127.0.0.1:{port}"
    if _close():
        umask = os.umask(0o077)
        ensure_token_if_auth_enabled()
        os.umask(umask)
        if (file := RAYS_OWN.expanduser()).exists():
            file.chmod(0o600)  # `ray get-auth-token --generate` lets everybody read it
        settings = f"{MODE}=token {settings}"
    print(f"to submit jobs from another shell of this account, run there: export {settings}", flush=True)


def _free_port(first: int) -> int:
    """Return the first port of loopback, from ``first`` on, on which nothing listens."""
    for port in range(first, 65536):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RefusedError(
        f"no port from {first} on is free for the dashboard; choose one by HEAD_ARGS=--dashboard-port=PORT"
    )


def _close() -> bool:
    """Close clusters of this machine to the network, and their files to others. Return whether they require a token."""
    # Without this variable Ray replaces 127.0.0.1 by the machine's own address, and listens on every interface. At 0 it
    # declares that the machine can't have a cluster of several nodes. Child processes inherit it; this process has read
    # it already, so the constant is set as well.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ["RAY_TMPDIR"] = str(_closed_folder())
    if os.environ.get(MODE, "").lower() == "disabled":
        log.warning("%s is disabled: every account of this machine can run code as yours while the cluster is up", MODE)
        return False
    os.environ.setdefault(MODE, "token")
    Config.initialize("")  # Ray reads the mode once, maybe before now
    return True


def _closed_folder() -> Path:
    """Make Ray's folder if it is missing, close it to other accounts, and return it."""
    made = surroundings.folder()
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = made.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise RefusedError(f"Ray's folder {made} belongs to somebody else; set RAY_TMPDIR to a folder of yours")
    made.chmod(0o700)
    return made


def _new_token() -> str:
    """Write a new token to a file that only this account can read, and return its path. The file is removed when this
    process ends."""
    descriptor, path = tempfile.mkstemp(prefix="token-", dir=os.environ["RAY_TMPDIR"])
    atexit.register(Path(path).unlink, missing_ok=True)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(token_hex(32))
    return path
