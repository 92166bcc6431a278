"""The pages of a store, and the same as JSON under /api, as an ASGI application.

Names come from strangers' URLs: each is one name below its folder, or there is no such page. What comes from a store is
text to a page; a report, which is a page itself, is shown in a sandbox. Nothing is ever written.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pandas as pd
from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import filesize
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rayexp.errors import RefusedError, did_you_mean, first_line
from rayexp.service import facts
from rayexp.service.access import RequireToken
from rayexp.service.cache import Cache
from rayexp.stages.settings import shown
from rayexp.store.artifacts import Store, StoreError
from rayexp.store.index import AmbiguousError, StoreIndex
from rayexp.terminal import duration

#: A name of a study, of a stage or of a file: it leads into no other folder.
Name = Annotated[str, InPath(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$")]
#: Bytes of a file that is handed out, at most: it is read into memory.
LARGEST = 256 * 2**20
#: Seconds that a reader waits for the store.
ANSWER_S = 30.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
#: A report has styles and a script of its own, which the policy in it names by a hash. In a sandbox it is a stranger.
OF_REPORT = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = Path(str(files("rayexp.service"))) / "pages"


class MissingError(RefusedError):
    """There is no such page."""


def application(url: str, hosts: Sequence[str], token: str = "") -> FastAPI:
    """Return the service of a store. hosts: names by which browsers may call it. token: that it asks for, if any."""
    index, cache = StoreIndex(Store(url, timeout_s=ANSWER_S)), Cache()
    app = FastAPI(title="rayexp results", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    render = _renderer()

    @app.get("/api/studies")
    def studies() -> dict[str, Any]:
        """Every study of the store, with its progress and verdicts."""
        return cache("studies", lambda: facts.studies(index))

    @app.get("/api/studies/{name}")
    def study(name: Name) -> dict[str, Any]:
        """One study: verdicts, stages by state, files."""
        if name not in (known := index.studies()):
            others = ", ".join(known) or "none"
            raise MissingError(f"there is no study {name!r}; {did_you_mean(name, known)}in this store: {others}")
        return cache(("study", name), lambda: facts.study(index, name))

    @app.get("/api/studies/{name}/results")
    def results(name: Name, request: Request, form: str = "csv") -> Response:
        """The results table of a study, one row a prompt: as csv or parquet, of the rows whose columns have the values
        that the query names."""
        content = _file(index, f"studies/{name}", "results.parquet")
        wanted = {column: value for column, value in request.query_params.items() if column != "form"}
        if form not in ("csv", "parquet"):
            raise MissingError(f"form is {form!r}; allowed: csv, parquet")
        if wanted or form == "csv":
            content = _selected(content, wanted, form)
        return _download(f"{name}.{form}", content)

    @app.get("/api/stages")
    def stages(study: str = "", kind: str = "any") -> dict[str, Any]:
        """Finished stages, and those that have not finished; of a study and a kind, if these are named."""
        if study and study not in index.studies():
            raise MissingError(f"there is no study {study!r}")
        return cache(("stages", study, kind), lambda: facts.stages(index, study, kind))

    @app.get("/api/stages/{stage}")
    def one_stage(stage: Name) -> dict[str, Any]:
        """One stage: settings of its lineage, provenance, files, last metrics, results by cell."""
        try:
            return cache(("stage", stage), lambda: facts.stage(index, stage))
        except (ValueError, AmbiguousError) as error:
            raise MissingError(str(error)) from error

    @app.get("/", include_in_schema=False)
    def studies_page() -> HTMLResponse:
        return render("studies.html", studies())

    @app.get("/studies/{name}", include_in_schema=False)
    def study_page(name: Name) -> HTMLResponse:
        return render("study.html", study(name))

    @app.get("/studies/{name}/report", include_in_schema=False)
    def report(name: Name) -> HTMLResponse:
        page = _file(index, f"studies/{name}/report", "index.html").decode(errors="replace")
        return HTMLResponse(page, headers={"Content-Security-Policy": OF_REPORT})

    @app.get("/studies/{name}/files/{file}", include_in_schema=False)
    def file_of_study(name: Name, file: Name) -> Response:
        return _download(file, _file(index, f"studies/{name}", file))

    @app.get("/stages/{stage}", include_in_schema=False)
    def stage_page(stage: Name) -> HTMLResponse:
        return render("stage.html", one_stage(stage))

    @app.get("/stages/{stage}/files/{file:path}", include_in_schema=False)
    def file_of_stage(stage: Name, file: str) -> Response:
        found = one_stage(stage)
        if file not in {each["name"] for each in found["files"]}:
            raise MissingError(f"the stage {stage} has no file {file!r}")
        return _download(file.rpartition("/")[2], _file(index, f"stages/{found['id']}", file))

    @app.get("/style.css", include_in_schema=False)
    def style() -> Response:
        return Response((PAGES / "style.css").read_bytes(), media_type="text/css")

    @app.exception_handler(MissingError)
    def missing(request: Request, error: MissingError) -> Response:
        return _refusal(request, 404, str(error), render)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(HTTPException)
    def no_page(request: Request, error: Exception) -> Response:
        return _refusal(request, getattr(error, "status_code", 404), "there is no such page", render)

    @app.exception_handler(StoreError)
    def unreachable(request: Request, error: StoreError) -> Response:
        return _refusal(request, 503, first_line(error), render)

    @app.middleware("http")
    async def with_headers(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    if token:
        app.add_middleware(RequireToken, token=token, page=(PAGES / "login.html").read_text(encoding="utf-8"))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


def _renderer() -> Callable[..., HTMLResponse]:
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "bytes": filesize.decimal, "shown": shown, "part": _part}

    def render(page: str, facts: Mapping[str, Any], status: int = 200) -> HTMLResponse:
        return HTMLResponse(environment.get_template(page).render(facts), status)

    return render


def _part(name: str) -> str:
    """Return a name as a part of a URL."""
    return quote(name, safe="")


def _file(index: StoreIndex, folder: str, name: str) -> bytes:
    """Return a file. Raises MissingError if there is none, or none that is small enough."""
    try:
        if (size := index.store.files.size(f"{folder}/{name}")) > LARGEST:
            raise MissingError(f"{name} has {filesize.decimal(size)}; take it from {index.store.url}/{folder}")
        return index.store.files.read(f"{folder}/{name}")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingError(f"there is no {name} in {folder} yet") from error


def _selected(content: bytes, wanted: dict[str, str], form: str) -> bytes:
    """Return the rows of a table whose columns have these values, as text for people. Raises MissingError on a column
    that it does not have."""
    rows = pd.read_parquet(io.BytesIO(content))
    for column, value in wanted.items():
        if column not in rows.columns:
            raise MissingError(f"there is no column {column!r}; allowed: {', '.join(rows.columns)}")
        rows = rows[rows[column].map(shown) == value]
    return rows.to_csv(index=False).encode() if form == "csv" else rows.to_parquet(index=False)


def _download(name: str, content: bytes) -> Response:
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _refusal(request: Request, status: int, sentence: str, render: Callable[..., HTMLResponse]) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": sentence}, status)
    return render("refusal.html", {"sentence": sentence}, status)
