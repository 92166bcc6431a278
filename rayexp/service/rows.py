"""Rows of a study's results table, chosen by the values of columns: as a page, and as a file."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.errors import not_among
from rayexp.stages.settings import ABSENT, shown
from rayexp.store import parquet
from rayexp.store.filesystem import StoreError

#: Rows of one page; largest number of values of a column by which rows can be chosen.
PAGE, CHOICES = 200, 60
#: Columns by which rows can be chosen, if they have several values. So can columns with a dot, which are settings.
CHOSEN_BY = (
    *("kind", "task", "source", "layers", "ood_ratio", "seed", "prompt_role", "kl_beta", "group_size", "condition"),
    *("role", "cell", "template", "copied", "greedy_correct"),
)
#: Columns of a page; a file has all.
SHOWN = (
    *("stage_id", "label", "role", "cell", "prompt_index", "q", "init_q", "greedy_correct"),
    *("prompt", "gold", "completion"),
)
FORMS = ("csv", "parquet")
#: Of the file, in errors.
NAME = "results.parquet"


def look(content: bytes, wanted: Mapping[str, str], page: int) -> dict[str, Any]:
    """Return one page of the rows of a table (Parquet) with the wanted values, and the columns and values by which rows
    can be chosen. Raises ValueError on an unknown column or page, StoreError if the content is not a table."""
    names = _schema(content, wanted).names
    if missing := [name for name in SHOWN if name not in names]:
        raise StoreError(f"{NAME} has no column {missing[0]}")
    choosable = [name for name in names if name in CHOSEN_BY or "." in name]
    table = parquet.table(content, NAME, list(dict.fromkeys([*choosable, *SHOWN, *wanted])))
    values = {name: _values(table[name]) for name in choosable}
    rows = _chosen(table, wanted)
    pages = max(1, math.ceil(len(rows) / PAGE))
    if not 1 <= page <= pages:
        raise ValueError(f"page={page} should be from 1 to {pages}")
    part = rows.slice((page - 1) * PAGE, PAGE).select(SHOWN)
    return {
        "wanted": dict(wanted),
        "choices": {name: each for name, each in values.items() if name in wanted or 1 < len(each) <= CHOICES},
        "rows": part.to_pylist(),
        "first": (page - 1) * PAGE + 1,
        "chosen": len(rows),
        "all": len(table),
        "page": page,
        "pages": pages,
    }


def file(content: bytes, wanted: Mapping[str, str], form: str) -> bytes:
    """Return the rows of a table (Parquet) with the wanted values, with all columns. form: one of ``FORMS``. Raises as
    ``look`` does."""
    if form not in FORMS:
        raise ValueError(not_among("form", form, FORMS))
    if not wanted and form == "parquet":
        return content
    _schema(content, wanted)
    rows, target = _chosen(parquet.table(content, NAME), wanted), io.BytesIO()
    if form == "csv":
        rows.to_pandas().to_csv(target, index=False)
    else:
        pq.write_table(rows, target)
    return target.getvalue()


def _schema(content: bytes, wanted: Mapping[str, str]) -> pa.Schema:
    """Return the columns of a table. Raises ValueError if a wanted column is missing or holds lists."""
    schema = parquet.schema(content, NAME)
    single = [each.name for each in schema if not pa.types.is_nested(each.type)]
    if others := [name for name in wanted if name not in single]:
        why = "the column {!r} holds lists" if others[0] in schema.names else "there is no column {!r}"
        raise ValueError(f"{why.format(others[0])}; choose from {', '.join(single)}")
    return schema


def _chosen(table: pa.Table, wanted: Mapping[str, str]) -> pa.Table:
    kept = np.ones(len(table), dtype=bool)
    for name, value in wanted.items():
        numbers, values = pd.factorize(table[name].to_pandas(), use_na_sentinel=False)
        kept &= np.isin(numbers, [i for i, each in enumerate(values) if _text(each) == value])
    return table.filter(pa.array(kept))


def _values(column: pa.ChunkedArray) -> list[str]:
    """Return the distinct values of a column as texts, numbers by size."""

    def place(value: Any) -> tuple[float, str]:
        is_number = isinstance(value, int | float) and value == value
        return (float(value) if is_number else math.inf), _text(value)

    return list(dict.fromkeys(map(_text, sorted(column.unique().to_pylist(), key=place))))


def _text(value: Any) -> str:
    """Return the text of a value; the same one for None, an empty text and NaN."""
    return ABSENT if value is None or value == "" or value != value else shown(value)
