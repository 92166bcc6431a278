"""Parquet files of a store, which anyone who can write to the store may have written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.errors import first_line
from rayexp.store.filesystem import StoreError


def table(data: bytes, place: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the validated table in a Parquet file, or those of ``columns`` that it has. place: of the file, for the
    error. Raises StoreError if the file is not a table."""
    with _named(place):
        # Unlike read_table, this reads the file alone, and no folders that are named like partitions.
        found = pq.ParquetFile(pa.BufferReader(data)).read(columns)
        found.validate(full=True)
    return found


def schema(data: bytes, place: str) -> pa.Schema:
    """Return the columns of a Parquet file. Raises StoreError as ``table`` does."""
    with _named(place):
        return pq.read_schema(pa.BufferReader(data))


@contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{place} is not a table ({first_line(error)})") from error
