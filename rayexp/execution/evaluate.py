"""Evaluate: (spec, finished init) -> artifact with one row a test prompt."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from rayexp.evaluation.measure import measure
from rayexp.models import decoder
from rayexp.spec import Evaluate, RunConfig
from rayexp.store.artifacts import Store
from rayexp.telemetry.metric_log import MetricLog


def run(spec: Evaluate, store: Store, run_config: RunConfig) -> None:
    """Measure a finished stage and publish the rows."""
    metric_log = MetricLog()
    with store.model(spec.init.id) as folder:
        model = decoder.load(folder, decoder.resolve_device(run_config.device))
    publish(spec, measure(model, spec.root.world, spec), metric_log, store, run_config)


def publish(spec: Evaluate, rows: pa.Table, metric_log: MetricLog, store: Store, run_config: RunConfig) -> None:
    """Make the artifact of a measurement that was taken elsewhere. journal: begun before it, for how long it took."""
    with TemporaryDirectory() as folder:
        pq.write_table(rows, Path(folder) / "results.parquet")
        store.publish(spec, Path(folder), metric_log.provenance(run_config))
