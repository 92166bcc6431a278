"""The facts of a store as JSON, and tables as files, under /api."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rayexp.service.answers import columns_in, download
from rayexp.service.reader import Name, ReaderOf

router = APIRouter(prefix="/api")


@router.get("/studies")
def studies(reader: ReaderOf) -> dict[str, Any]:
    """Return every study of the store, with its progress and verdicts."""
    return reader.studies()


@router.get("/studies/{name}")
def study(name: Name, reader: ReaderOf) -> dict[str, Any]:
    """Return one study: verdicts, stages by state, files."""
    return reader.study(name)


@router.get("/studies/{name}/results")
def results(name: Name, reader: ReaderOf, request: Request, form: str = "csv") -> Response:
    """Return the results table of a study, one row a prompt, as csv or parquet; only rows with the values in the
    query."""
    return download(f"{name}.{form}", reader.results(name, columns_in(request), form))


@router.get("/studies/{name}/rows")
def rows(name: Name, reader: ReaderOf, request: Request, page: int = 1) -> dict[str, Any]:
    """Return 200 of the rows of ``results``, and the columns and values by which rows can be chosen."""
    return reader.rows(name, columns_in(request), page)


@router.get("/compare")
def compare(a: str, reader: ReaderOf, b: str = "", by: str = "") -> dict[str, Any]:
    """Return the comparison of two studies, or of the parts of one study that each have one value of the setting by."""
    return reader.comparisons(a, b, by)


@router.get("/stages")
def stages(reader: ReaderOf, study: str = "", kind: str = "any") -> dict[str, Any]:
    """Return finished and unfinished stages; of one study or kind, if these are given."""
    return reader.stages(study, kind)


@router.get("/stages/{stage}")
def one_stage(stage: Name, reader: ReaderOf) -> dict[str, Any]:
    """Return one stage: settings of its lineage, provenance, files, last metrics, results by cell, examples."""
    return reader.stage(stage)


@router.get("/stages/{stage}/curves")
def curves(stage: Name, reader: ReaderOf) -> dict[str, Any]:
    """Return the metrics of a stage by step, thinned to 200 points each."""
    return reader.curves(stage)


@router.get("/stages/{stage}/differences")
def differences(stage: Name, other: str, reader: ReaderOf) -> dict[str, Any]:
    """Return the settings of two stages along their lineages, differing ones first."""
    return reader.differences(stage, other)
