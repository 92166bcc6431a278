"""The pages of a store, and the files that they link to."""

from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from rayexp.service import chains
from rayexp.service.answers import PAGES, columns_in, download, html
from rayexp.service.answers import page as answer
from rayexp.service.curves import chart
from rayexp.service.facts import PAIRED
from rayexp.service.reader import MissingError, Name, ReaderOf

#: Policy for a report, which has styles and a script of its own. In a sandbox it has no access to the service.
OF_REPORT = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: Seconds after which a page that waits for a report reloads.
LOOK_AGAIN_S = 10

router = APIRouter(include_in_schema=False)


@router.get("/")
def studies(request: Request, reader: ReaderOf) -> HTMLResponse:
    return answer(request, "studies.html", reader.studies())


@router.get("/studies/{name}")
def study(request: Request, name: Name, reader: ReaderOf) -> HTMLResponse:
    def drawn() -> str:
        found = reader.study(name)
        return html(request, "study.html", {**found, "chains": chains.table(found["stages"])})

    return HTMLResponse(reader.kept(f"page of {name}", drawn))


@router.get("/studies/{name}/report")
def report(request: Request, name: Name, reader: ReaderOf) -> HTMLResponse:
    content = reader.newest(name, "report/index.html")
    if content is not None:
        return HTMLResponse(content.decode(errors="replace"), headers={"Content-Security-Policy": OF_REPORT})
    found = reader.study(name)
    if not found["states"].get("finished"):
        raise MissingError(f"no stage of the study {name} has finished yet, so there is nothing to report")
    waiting = answer(request, "waiting.html", found, 202)
    waiting.headers["Refresh"] = str(LOOK_AGAIN_S)
    return waiting


@router.get("/studies/{name}/results")
def results(request: Request, name: Name, reader: ReaderOf, page: int = 1) -> HTMLResponse:
    found = reader.rows(name, columns_in(request), page)
    return answer(request, "results.html", {**found, "query": urlencode(found["wanted"])})


@router.get("/studies/{name}/files/{file}")
def file_of_study(name: Name, file: Name, reader: ReaderOf) -> Response:
    return download(file, reader.file(f"studies/{name}", file))


@router.get("/compare")
def compare(request: Request, reader: ReaderOf, a: str = "", b: str = "", by: str = "") -> HTMLResponse:
    from rayexp.reports.compare import difference_text  # scipy, which no other page needs

    found = reader.comparisons(a, b, by)["comparisons"] if b or by else []
    comparisons = [{**each, "rows": [(row, difference_text(row)) for row in each["table"]]} for each in found]
    asked = {"a": a, "b": b, "by": by, "studies": reader.comparable(), "paired": PAIRED}
    return answer(request, "compare.html", {**asked, "comparisons": comparisons})


@router.get("/stages/{stage}")
def stage(request: Request, stage: Name, reader: ReaderOf, other: str = "") -> HTMLResponse:
    found, drawn = reader.stage(stage), reader.curves(stage)["curves"]
    compared = reader.differences(stage, other) if other else None
    charts = [(curve, chart(curve["points"])) for curve in drawn if curve["points"]]
    return answer(
        request, "stage.html", {**found, "charts": charts, "compared": compared, "alike": reader.alike(stage)}
    )


@router.get("/stages/{stage}/files/{file:path}")
def file_of_stage(stage: Name, file: str, reader: ReaderOf) -> Response:
    found = reader.stage(stage)
    if file not in {each["name"] for each in found["files"]}:
        raise MissingError(f"the stage {stage} has no file {file!r}")
    return download(file.rpartition("/")[2], reader.file(f"stages/{found['id']}", file))


@router.get("/style.css")
def style() -> Response:
    return Response((PAGES / "style.css").read_bytes(), media_type="text/css")
