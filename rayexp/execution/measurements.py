"""Measurements: a finished model in, a table of results out."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.config import RunConfig
from rayexp.execution import runner
from rayexp.models import devices, io
from rayexp.stages import Stage
from rayexp.store.artifacts import Store
from rayexp.telemetry.metric_log import MetricLog


def run(stage: Stage, store: Store, run_config: RunConfig) -> None:
    """Measure the finished stage that this one is about, and publish the rows."""
    metric_log = MetricLog(stage)
    with store.model(stage.subject.id) as folder:
        model = io.load(folder, devices.resolve_device(run_config.device))
    publish(stage, runner(stage).measure(model, stage), metric_log, store, run_config)


def publish(stage: Stage, rows: pa.Table, metric_log: MetricLog, store: Store, run_config: RunConfig) -> None:
    """Publish the rows of a measurement. metric_log: begun before the measurement, so that it times it."""
    with TemporaryDirectory() as folder:
        pq.write_table(rows, Path(folder) / "results.parquet")
        store.publish(stage, Path(folder), metric_log.provenance(run_config))
