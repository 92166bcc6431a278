"""The runner of pretrained models: weights, tokenizer and licence into the store."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rayexp import sources
from rayexp.config import RunConfig
from rayexp.models import factory, io
from rayexp.stages import Pretrained
from rayexp.store.artifacts import Store
from rayexp.telemetry.metric_log import MetricLog


def run(stage: Pretrained, store: Store, run_config: RunConfig) -> None:
    """Publish the model as its source has it, in fp32."""
    metric_log = MetricLog(stage)
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        io.save(factory.pretrained(stage.decoder, stage.task.vocabulary), stage.task.vocabulary, model)
        for licence in sources.licences(stage.decoder.source, stage.decoder.revision):
            shutil.copy(licence, model / licence.name)
        (Path(folder) / "metrics.parquet").write_bytes(metric_log.to_bytes())
        store.publish(stage, Path(folder), metric_log.provenance(run_config))
