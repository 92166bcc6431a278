"""Who may read: on this machine everybody who reaches it, elsewhere who has Ray's token."""

import hmac
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "rayexp-token"
#: Bytes of what a form sends, at most.
FORM = 4096
OPEN = ("/style.css",)


class RequireToken:
    """Middleware that asks for a token: in the header ``Authorization: Bearer TOKEN``, or once in a form, whose cookie
    this site alone gets back."""

    def __init__(self, app: ASGIApp, token: str, page: str) -> None:
        self._app, self._token, self._page = app, token, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._known(Headers(scope=scope), Request(scope)):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await self._entered(request) if scope["path"] == "/login" else None
        await (response or self._asked(request))(scope, receive, send)

    def _known(self, headers: Headers, request: Request) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
        return self._equal(given)

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def _entered(self, request: Request) -> Response | None:
        """Return the way in for who sent the token; None for anybody else."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > FORM:
                return None
        (given, *_) = parse_qs(body.decode(errors="replace")).get("token", [""])
        if request.method != "POST" or not self._equal(given.strip()):
            return None
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return response

    def _asked(self, request: Request) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": "a token is needed: send it as Authorization: Bearer TOKEN"}, 401)
        return HTMLResponse(self._page, 401)
