"""The results service as an application of Ray Serve, on the head of the cluster that a sweep runs on.

The dashboard's page *Serve* lists applications without links, so the name of this one contains its address. It lives as
long as the cluster, also after the end of the job that started it.
"""

import hashlib
import logging
import socket
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from rayexp.errors import first_line
from rayexp.service import access
from rayexp.timeouts import NoAnswerError, run_with_timeout

#: Seconds in which Ray Serve has to start; it takes 5 on an idle machine and 30 on a busy one.
LIMIT_S = 120.0
FIRST_PORT, PORTS = 8700, 100
#: Placement on the head without a CPU: the service needs little, and ends with the cluster alone.
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
#: The controller looks around once a second instead of ten times, because it has nothing to scale.
CALM = {"runtime_env": {"env_vars": {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1"}}}
#: Its warnings are about a busy machine, and would appear in the log of the sweep.
QUIET = {"log_level": "ERROR", "enable_access_log": False}


class ServeError(Exception):
    """A failure of Ray Serve to show a store. The message is a sentence."""


def deploy(url: str) -> str:
    """Show a store on the loopback of the cluster's head; return the address. Takes seconds.

    The service requires the cluster's token. Raises ServeError if there is none, because then every account of the head
    could read the store and run code through Ray Serve's ports; also if Ray Serve fails or takes too long.
    """
    if not (is_token_auth_enabled() and access.ray_token()):
        raise ServeError("the cluster has no token; set RAY_AUTH_MODE=token where it is started")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        return run_with_timeout(LIMIT_S, lambda: _deployed(url), "deploy the results")
    except NoAnswerError:
        raise ServeError(f"Ray Serve did not start within {LIMIT_S:g} s") from None
    except (RayServeException, RayError, RuntimeError) as error:
        raise ServeError(first_line(error)) from error


def _deployed(url: str) -> str:
    prefix = f"/results-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    address = f"{_started()}{prefix}"

    def build() -> Any:
        """Build the service in its replica. The token is read there, because Serve writes its arguments to disk."""
        from rayexp.service.app import application

        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it says how it found the application
        _stay_on_loopback()
        return application(url, ("*",), access.ray_token(), prefix)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="results",
        ray_actor_options=ON_HEAD,
        logging_config=QUIET,
    )
    name = f"results at {address}"
    serve.run(deployment.bind(), name=name, route_prefix=prefix, logging_config=QUIET)
    if (status := serve.status().applications[name]).status != ApplicationStatus.RUNNING:
        raise ServeError(status.message)
    return address


def _stay_on_loopback() -> None:
    """Make this replica listen on loopback only. Ray Serve would let it listen on every interface, for gRPC calls
    between applications, of which there are none."""
    from ray.serve._private import replica

    listen = replica.add_port_to_grpc_server  # pyright: ignore[reportPrivateImportUsage]
    setattr(replica, "add_port_to_grpc_server", lambda server, _: listen(server, "127.0.0.1:0"))  # noqa: B010


def _started() -> str:
    """Return the address of Ray Serve; start it on the head's loopback if it is not running."""
    if not serve.status().proxies:
        port = ray.get(ray.remote(_free_port).options(**ON_HEAD).remote())
        http = {"host": "127.0.0.1", "port": port}
        serve.start("HeadOnly", http, logging_config=QUIET, controller_options=CALM)
    client = _get_global_client()
    assert client is not None, "Ray Serve runs"
    return client.root_url


def _free_port() -> int:
    """Return a free port of this machine's loopback."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of the head is free for the results")
