"""The record of a running stage: its metrics by step, and its provenance."""

import io
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.config import RunConfig
from rayexp.parts import own_modules
from rayexp.stages import Stage
from rayexp.store import provenance
from rayexp.telemetry import metrics

#: One row a number. metric: ``stage/split/metric``, e.g. ``pretrain/ood/loss``.
SCHEMA = pa.schema([("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
#: Key, in the metadata of a metric log's file, of the fingerprints of the code that wrote it.
SOURCES = b"sources"


class PhaseTimer:
    """Wall-clock seconds of each part of a stage, summed over all steps of this attempt. The time of an inner part does
    not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []  # seconds of parts in each of those that are being timed

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the block as ``part``."""
        started = time.monotonic()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = time.monotonic() - started
            self.seconds[part] = self.seconds.get(part, 0.0) + took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took


class MetricLog:
    """Metrics of one stage. They are part of its checkpoints, so that a continued stage has its whole curve."""

    def __init__(self, stage: Stage, before: bytes | None = None) -> None:
        """before: the file of an earlier attempt, to continue from."""
        self._rows: list[tuple[int, str, float]] = []
        self._started = time.time()
        sources = (provenance.source(own_modules([stage])) or "").split("+")
        if before is not None:
            table = pq.read_table(pa.BufferReader(before))
            self._rows = list(zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True))
            sources = [*(table.schema.metadata or {}).get(SOURCES, b"").decode().split("+"), *sources]
        self._sources = list(dict.fromkeys(filter(None, sources)))

    def log(self, step: int, **groups: dict[str, float]) -> None:
        """Record ``{group}/{name}`` for every name of every group, without values that are not finite.

        Raises UndefinedMetricError for a name that ``rayexp.telemetry.metrics`` does not define.
        """
        self._rows += [
            (step, name, float(value)) for name, value in metrics.named(**groups).items() if math.isfinite(value)
        ]

    def last(self) -> dict[str, float]:
        """Return the last value of every metric so far."""
        return {name: value for _, name, value in self._rows}

    def to_bytes(self) -> bytes:
        """Return the content of ``metrics.parquet``."""
        columns = list(zip(*self._rows, strict=True)) or [(), (), ()]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        file = io.BytesIO()
        pq.write_table(pa.table(arrays, SCHEMA.with_metadata({SOURCES: "+".join(self._sources)})), file)
        return file.getvalue()

    def provenance(self, run_config: RunConfig, seconds: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
        """Return the record of this attempt: machine, time, user, code and settings. ``seconds``: durations by part."""
        return provenance.record(self._started, seconds, run_config, self._sources)


def progress_event(stage: Stage, step: int, **groups: dict[str, float]) -> dict[str, Any]:
    """Return the progress of a running stage: its label and id, its step, and its metrics by full name.

    ``timesteps_total`` repeats the step under the name that Tune's loggers use as their horizontal axis.
    """
    about = {"stage": stage.label, "stage_id": stage.id, "step": step, "steps": stage.steps, "timesteps_total": step}
    return about | metrics.named(**groups)
