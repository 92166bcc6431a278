"""The results service as an application of Ray Serve, on the head of the cluster that a sweep runs on.

The dashboard's page *Serve* lists applications without a link to them; so the name of this one has its address. It
stays as long as the cluster does, whatever becomes of the job that started it.
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
from rayexp.timeouts import TimeoutError, run_with_timeout

#: Seconds in which Ray Serve has to be there; it takes 5 on an idle machine, 30 on one with too much to do.
LIMIT_S = 120.0
FIRST_PORT, PORTS = 8700, 100
#: A place on the head for what needs no CPU: it is small, and it ends with the cluster alone.
ON_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
#: The controller looks around once in a second, in place of ten times, because it has nothing to scale.
CALM = {"runtime_env": {"env_vars": {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1"}}}
#: Its warnings are of a busy machine, and would be in the log of the sweep.
QUIET = {"log_level": "ERROR", "enable_access_log": False}


class ServeError(Exception):
    """Ray Serve can't show a store. The message is a sentence."""


def deploy(url: str) -> str:
    """Show a store on the loopback of the cluster's head; return the address. Takes seconds.

    The service asks for the cluster's token. Raises ServeError where there is none, because every account of the head
    would read the store, and run code by what Ray Serve listens with; and where Ray Serve fails, or takes too long.
    """
    if not (is_token_auth_enabled() and access.ray_token()):
        raise ServeError("the cluster asks for no token; set RAY_AUTH_MODE=token where it is started")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        return run_with_timeout(LIMIT_S, lambda: _deployed(url), "deploy the results")
    except TimeoutError:
        raise ServeError(f"Ray Serve did not start within {LIMIT_S:g} s") from None
    except (RayServeException, RayError, RuntimeError) as error:
        raise ServeError(first_line(error)) from error


def _deployed(url: str) -> str:
    prefix = f"/results-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    address = f"{_started()}{prefix}"

    def build() -> Any:
        """Build the service where it runs. Its token is read there, because Serve keeps what it is given on disk."""
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
    """Let the replica that this process is listen on loopback. Ray Serve would have it listen on every interface, for
    calls between applications that it is asked to make by gRPC, of which there are none."""
    from ray.serve._private import replica

    listen = replica.add_port_to_grpc_server  # pyright: ignore[reportPrivateImportUsage]
    setattr(replica, "add_port_to_grpc_server", lambda server, _: listen(server, "127.0.0.1:0"))  # noqa: B010


def _started() -> str:
    """Return where Ray Serve answers; start it on the head's loopback where it is not running."""
    if not serve.status().proxies:
        port = ray.get(ray.remote(_free_port).options(**ON_HEAD).remote())
        http = {"host": "127.0.0.1", "port": port}
        serve.start("HeadOnly", http, logging_config=QUIET, controller_options=CALM)
    client = _get_global_client()
    assert client is not None, "Ray Serve runs"
    return client.root_url


def _free_port() -> int:
    """Return a port of this machine's loopback on which nothing listens."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of the head is free for the results")
