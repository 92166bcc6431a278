"""Summaries of finished stages, in one file for each study. With them a list of 100,000 stages reads a hundred files,
and not a manifest and a record of each stage.

    summaries/<study>.parquet   a row for each stage of a study that was finished when its report was written
    distrusted/<id>             an empty mark: the artifact was removed once and may have been made again, so its
                                summaries may be out of date

For a stage without a summary, or with a mark, the manifest and the record are read. The mark is written before the
artifact is removed, and stays for good, because a report may still write a summary that it read before the removal.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.stages import kind_in
from rayexp.store import parquet
from rayexp.store.filesystem import Files, StoreError

SUMMARIES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("started", pa.string(), nullable=False),
        pa.field("duration_s", pa.float64()),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class StageSummary:
    """The summary of a finished stage. started: in ISO 8601, UTC; empty if unknown. bytes: size of all its files."""

    id: str
    label: str
    started: str
    duration_s: float | None
    bytes: int

    @property
    def kind(self) -> str:
        return kind_in(self.id)


def path(study: str) -> str:
    """Return the name of a study's file of summaries."""
    return f"summaries/{study}.parquet"


def packed(summaries: Iterable[StageSummary]) -> bytes:
    """Return summaries as the content of a Parquet file."""
    file = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(each) for each in summaries], SUMMARIES), file)
    return file.getvalue().to_pybytes()


def read(files: Files) -> dict[str, StageSummary]:
    """Return the summaries of all stages that are not distrusted, by id. Ignore invalid files."""
    there = files.read_existing([f"summaries/{name}" for name in files.names("summaries")])
    found = {each.id: each for data in there.values() for each in _unpacked(data)}
    for stage_id in files.names("distrusted"):
        found.pop(stage_id, None)
    return found


def distrust(files: Files, stage_id: str) -> None:
    """Mark all summaries of a stage as untrustworthy from now on. Call it before the stage's artifact is removed."""
    files.write(f"distrusted/{stage_id}", b"")


def _unpacked(data: bytes) -> list[StageSummary]:
    try:
        table = parquet.table(data, "summaries")
    except StoreError:
        return []
    rows = table.to_pylist() if table.schema.equals(SUMMARIES) else []
    found = [StageSummary(**row) for row in rows]
    return found if all(each.bytes >= 0 and 0 <= (each.duration_s or 0) < 1e12 for each in found) else []
