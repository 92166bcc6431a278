"""The facts of a store as JSON, and tables as files, under /api."""

import io
from typing import Any

import pandas as pd
from fastapi import APIRouter, Request
from fastapi.responses import Response

from rayexp.service.answers import download
from rayexp.service.reader import MissingError, Name, ReaderOf
from rayexp.stages.settings import shown

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
    """Return the results table of a study, one row a prompt, as csv or parquet: the rows whose columns have the values
    that the query names."""
    content = reader.file(f"studies/{name}", "results.parquet")
    wanted = {column: value for column, value in request.query_params.items() if column != "form"}
    if form not in ("csv", "parquet"):
        raise MissingError(f"form is {form!r}; allowed: csv, parquet")
    if wanted or form == "csv":
        content = _selected(content, wanted, form)
    return download(f"{name}.{form}", content)


@router.get("/stages")
def stages(reader: ReaderOf, study: str = "", kind: str = "any") -> dict[str, Any]:
    """Return finished stages, and those that have not finished; of a study and a kind, if these are named."""
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
    """Return the settings of a stage and of another one, along their lineages; those that differ first."""
    return reader.differences(stage, other)


def _selected(content: bytes, wanted: dict[str, str], form: str) -> bytes:
    """Return the rows of a table whose columns have these values, as text for people. Raises MissingError on a column
    that it does not have."""
    rows = pd.read_parquet(io.BytesIO(content))
    for column, value in wanted.items():
        if column not in rows.columns:
            raise MissingError(f"there is no column {column!r}; allowed: {', '.join(rows.columns)}")
        rows = rows[rows[column].map(shown) == value]
    return rows.to_csv(index=False).encode() if form == "csv" else rows.to_parquet(index=False)
