"""An S3 server on loopback, in its own process, that can be told to fail: moto's, with faults put before it.

``python -m tests.s3 PORT`` is the server; ``S3Server`` starts and ends one.
"""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

CONTROL = "/-faults"
ROOT = Path(__file__).parent.parent


class S3Server:
    """A running server, for the time of a ``with`` block."""

    def __enter__(self) -> "S3Server":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen([sys.executable, "-m", "tests.s3", str(port)], cwd=ROOT)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.calm()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the S3 server did not start") from None
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)

    def environment(self) -> dict[str, str]:
        """What makes every S3 client in a process, and in its children, talk to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """Create a bucket; its name has three characters at least."""
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def upset(self, kind: str, seconds: float = 3600.0, count: int | None = None) -> None:
        """From now on, for a time or for ``count`` requests, answer with ``kind``: 500, 403, reset, slow (by a second
        each) or hang; or take no notice of conditions, as some servers do (unconditional). Of several kinds each
        request meets one."""
        self._tell({"kind": kind, "seconds": seconds, "count": count})

    def calm(self) -> int:
        """End all faults; how many requests have met one since the last time."""
        return int(self._tell({}))

    def _tell(self, what: dict[str, Any]) -> bytes:
        request = urllib.request.Request(f"{self.url}{CONTROL}", json.dumps(what).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


class Faults:
    """WSGI middleware that answers in place of ``app`` while there are faults to show."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._active: list[dict[str, Any]] = []
        self._met = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == CONTROL:
            told = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start_response("200 OK", [])
            return [str(self._control(told)).encode()]
        kind = self._next()
        if kind in ("500", "403"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = "InternalError" if kind == "500" else "AccessDenied"
            start_response(f"{kind} {code}", [("Content-Type", "application/xml")])
            if environ["REQUEST_METHOD"] == "HEAD":  # a body would be taken for the start of the next answer
                return []
            return [f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()]
        if kind == "reset":
            connection = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)  # others hold it too, so closing it alone would change nothing
            raise ConnectionResetError("injected")
        if kind in ("slow", "hang"):
            time.sleep(1.0 if kind == "slow" else 3600.0)
        if kind == "unconditional":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        return self._app(environ, start_response)

    def _control(self, told: dict[str, Any]) -> int:
        with self._lock:
            if told:
                self._active.append(told | {"until": time.monotonic() + told["seconds"]})
                return 0
            met, self._met, self._active = self._met, 0, []
            return met

    def _next(self) -> str | None:
        """The fault that this request meets; kinds take turns."""
        with self._lock:
            self._active = [f for f in self._active if f["until"] > time.monotonic() and f["count"] != 0]
            if not self._active:
                return None
            fault = self._active.pop(0)
            if fault["count"] is not None:
                fault["count"] -= 1
            self._active.append(fault)
            self._met += 1
            return str(fault["kind"])


def main(port: int) -> None:
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple("127.0.0.1", port, Faults(DomainDispatcherApplication(create_backend_app)), threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
