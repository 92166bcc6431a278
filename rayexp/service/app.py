"""The pages of a store, and the same as JSON under /api, as an ASGI application.

Names in URLs are not trusted: each has to be one name below its folder, or there is no such page. Everything from a
store is escaped; a report, which is a page itself, is shown in a sandbox. Nothing is ever written to the store.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rayexp.errors import first_line
from rayexp.service import browser, json_api
from rayexp.service.access import RequireToken
from rayexp.service.answers import refusal
from rayexp.service.reader import MissingError, Reader
from rayexp.store.artifacts import StoreError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def application(url: str, hosts: Sequence[str], token: str = "", root: str = "") -> FastAPI:
    """Return the service of a store. hosts: names by which browsers may call it. token: the token it requires, if any.
    root: its path behind a proxy."""
    app = FastAPI(
        title="rayexp results",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        root_path=root,
        lifespan=_open,
    )
    app.state.reader = Reader(url)
    app.include_router(json_api.router)
    app.include_router(browser.router)
    _refuse(app)
    app.middleware("http")(_with_headers)
    if token:
        app.add_middleware(RequireToken, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


@asynccontextmanager
async def _open(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.reader.close()


def _refuse(app: FastAPI) -> None:
    """Make an application answer errors with a status and a sentence."""

    @app.exception_handler(MissingError)
    def missing(request: Request, error: MissingError) -> Response:
        return refusal(request, 404, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()[0]
        if found["loc"][0] == "path":
            return refusal(request, 404, "there is no such page")
        message = found["msg"].removeprefix("Input ")
        return refusal(request, 422, f"{found['loc'][-1]}={found.get('input')!r} is refused: it {message}")

    @app.exception_handler(HTTPException)
    def no_page(request: Request, error: HTTPException) -> Response:
        return refusal(request, error.status_code, "there is no such page")

    @app.exception_handler(StoreError)
    def unreachable(request: Request, error: StoreError) -> Response:
        return refusal(request, 503, first_line(error))


async def _with_headers(request: Request, call_next: Callable[[Request], Any]) -> Response:
    response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
