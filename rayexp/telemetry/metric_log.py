"""What a stage wrote down while it ran: numbers by step and name, and where and how it was run."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.spec import GRPO, SFT, Pretrain, RunConfig
from rayexp.store import provenance
from rayexp.telemetry import metrics

#: One row a number. metric: ``stage/split/metric``, e.g. ``pretrain/ood/loss``.
SCHEMA = pa.schema([("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
#: Key of the fingerprints of the code that wrote a journal, among the notes of its file.
SOURCES = b"sources"


class PhaseTimer:
    """Seconds that each part of a stage took, by the wall clock, all steps of this attempt together. A part inside of
    another one counts for itself only."""

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
    """Metrics of one stage. Part of its checkpoints, so that a continued stage has its whole curve."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, str, float]] = []
        self._started = time.time()
        self._sources = [source for source in [provenance.source()] if source]

    def log(self, step: int, **groups: dict[str, float]) -> None:
        """Write down ``{group}/{name}`` for every name of every group; values that are not finite are left out.

        Raises UndefinedMetricError for a name that ``rayexp.telemetry.metrics`` does not define.
        """
        self._rows += [
            (step, name, float(value)) for name, value in metrics.named(**groups).items() if math.isfinite(value)
        ]

    def save(self, folder: Path) -> None:
        """Write ``metrics.parquet``."""
        columns = list(zip(*self._rows, strict=True)) or [(), (), ()]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        schema = SCHEMA.with_metadata({SOURCES: "+".join(self._sources)})
        pq.write_table(pa.table(arrays, schema), folder / "metrics.parquet")

    def load(self, folder: Path) -> None:
        """Continue from a saved one."""
        table = pq.read_table(folder / "metrics.parquet")
        self._rows = list(zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True))
        before = (table.schema.metadata or {}).get(SOURCES, b"").decode().split("+")
        self._sources = list(dict.fromkeys(filter(None, [*before, *self._sources])))

    def provenance(self, run_config: RunConfig, seconds: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
        """Where, when, by whom and with what this attempt was run. Durations in seconds; ``seconds`` by part of it."""
        return provenance.record(self._started, seconds, run_config, self._sources)


def report(stage: Pretrain | SFT | GRPO, step: int, **groups: dict[str, float]) -> dict[str, Any]:
    """What a running stage says of itself: which one it is, how far it is, and its numbers under their full names.

    ``timesteps_total`` is the step once more, by the name under which Tune's loggers look for their horizontal axis.
    """
    about = {"stage": stage.label, "stage_id": stage.id, "step": step, "steps": stage.steps, "timesteps_total": step}
    return about | metrics.named(**groups)
