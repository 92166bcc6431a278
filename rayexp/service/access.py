"""Access to the service: from this machine for everybody, from elsewhere with Ray's token."""

import hmac
import os
from pathlib import Path
from urllib.parse import parse_qs

from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rayexp.service.answers import page, refusal

COOKIE = "rayexp-token"
#: Cookie in which Ray's dashboard keeps its token. A browser sends it to all ports of a host, so users who come from
#: the dashboard need not enter the token again.
DASHBOARD_COOKIE = "ray-authentication-token"
#: Largest number of bytes of a form.
FORM = 4096
OPEN = ("/style.css",)


def ray_token() -> str:
    """Return the token of Ray's clusters from where Ray looks for it; empty if there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text(encoding="ascii").strip() if path.is_file() else "")


class RequireToken:
    """Middleware that requires a token: in the header ``Authorization: Bearer TOKEN``, or once in a form, which sets a
    cookie that the browser sends to this site alone."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (path := get_route_path(scope)) in OPEN or self._known(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await self._entered(request) if path == "/login" else None
        await (response or _asked(request))(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        request = Request(scope)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return any(map(self._equal, [given, *(request.cookies.get(name, "") for name in (COOKIE, DASHBOARD_COOKIE))]))

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def _entered(self, request: Request) -> Response | None:
        """Return a redirect with the cookie if the form has the token; None otherwise."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > FORM:
                return None
        (given, *_) = parse_qs(body.decode(errors="replace")).get("token", [""])
        if request.method != "POST" or not self._equal(given.strip()):
            return None
        root = f"{request.scope.get('root_path', '')}/"
        response = RedirectResponse(root, 303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, self._token, path=root, httponly=True, samesite="strict", secure=secure)
        return response


def _asked(request: Request) -> Response:
    if get_route_path(request.scope).startswith("/api/"):
        return refusal(request, 401, "a token is required; send it as Authorization: Bearer TOKEN")
    return page(request, "login.html", {}, 401)
