"""Answers to requests: a page, a download, a refusal."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import filesize
from starlette._utils import get_route_path

from rayexp.stages.settings import listed, shown
from rayexp.terminal import duration

PAGES = Path(str(files("rayexp.service"))) / "pages"


def _part(name: str) -> str:
    """Return a name, quoted as a part of a URL."""
    return quote(name, safe="")


def _time(moment: str) -> str:
    """Return an ISO 8601 time as readable text in UTC."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


#: Everything from a store is escaped.
_TEMPLATES = Environment(
    loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters |= {
    "duration": duration,
    "bytes": filesize.decimal,
    "shown": shown,
    "part": _part,
    "time": _time,
    "listed": listed,
}


def page(request: Request, name: str, facts: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Return a page of the folder ``pages`` with these facts."""
    return HTMLResponse(html(request, name, facts), status)


def html(request: Request, name: str, facts: Mapping[str, Any]) -> str:
    """Return the text of a page. Its links lead below the path that the service has."""
    return _TEMPLATES.get_template(name).render(facts, root=request.scope.get("root_path", ""))


def columns_in(request: Request) -> dict[str, str]:
    """Return the columns of a table in a query, with the values that rows have to have; without empty ones."""
    return {name: value for name, value in request.query_params.items() if value and name not in ("form", "page")}


def download(name: str, content: bytes) -> Response:
    """Return a file that a browser saves and never shows."""
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{_part(name)}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


def refusal(request: Request, status: int, sentence: str) -> Response:
    """Return a sentence as JSON below /api, else as a page."""
    if get_route_path(request.scope).startswith("/api/"):
        return JSONResponse({"error": sentence}, status)
    return page(request, "refusal.html", {"sentence": sentence}, status)
