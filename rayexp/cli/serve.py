"""``rayexp serve``: show a store as pages in a browser, and as JSON for programs."""

import socket
from dataclasses import dataclass

from rayexp.cli.place import StoreArgs
from rayexp.errors import RefusedError

#: Names of this machine that only its own browsers can use.
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Serve(StoreArgs):
    """Show a store in a browser: studies, reports, stages and files. Changes nothing; Ctrl-C ends it."""

    host: str = "127.0.0.1"
    """Address to listen on. At any other than 127.0.0.1 and localhost, readers have to enter Ray's token."""
    port: int = 8700
    """Port to listen on; 0 takes any free one."""

    def run(self) -> int:
        url = self.index().store.url
        token = "" if self.host in LOOPBACK else _token(self.host)
        listening = _listening(self.host, self.port)
        import uvicorn  # a web server, which no other command needs

        from rayexp.service.app import application

        app = application(url, (*LOOPBACK, self.host) if self.host != "0.0.0.0" else ("*",), token)
        print(f"results: http://{self.host}:{listening.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        server.run(sockets=[listening])
        return 0


def _token(host: str) -> str:
    """Return Ray's token. Raises RefusedError where there is none."""
    from rayexp.service.access import ray_token  # a web framework

    if token := ray_token():
        return token
    raise RefusedError(
        f"host={host!r} can be reached by others, and there is no token to ask them for; run `ray get-auth-token "
        "--generate`, set RAY_AUTH_TOKEN, or listen on 127.0.0.1"
    )


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises RefusedError if it can't be opened."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise RefusedError(f"port {port} of {host} cannot be opened ({error}); choose another by --port") from error
