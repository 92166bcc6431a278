"""Every metric that a stage logs or a sweep exports: its name, unit and meaning, defined once.

``metrics.parquet``, the progress of a running stage and Tune's loggers use ``name``; Prometheus uses ``exported``, with
Ray's prefix ``ray_``. The Grafana dashboard (``rayexp.telemetry.grafana``) is made from these definitions.
"""

from rayexp.errors import PermanentError
from rayexp.stages import KINDS, Metric

SWEEP = (
    Metric("sweep/trials", "trials", "Trials of the plan by state"),
    Metric("sweep/remaining_s", "s", "Estimated time to the end of the sweep"),
    Metric("sweep/stage_step", "steps", "Steps that a running stage has done"),
    Metric("sweep/stage_remaining_s", "s", "Estimated time to the end of a running stage's last step"),
    Metric("result/mass", "", "Mean Q of the cells of a role after a stage, over the seeds measured so far"),
    Metric("result/gain", "", "Mean Q of the cells of a role after a stage less that before it"),
)

METRICS = {metric.name: metric for metric in (*SWEEP, *(each for stage in KINDS.values() for each in stage.metrics))}
#: Tags of every exported metric of a stage. Only running stages are exported, so there are few at any time.
STAGE_TAGS = ("study", "stage")


class UndefinedMetricError(PermanentError):
    """A metric that a stage logs and nothing defines."""


def named(**groups: dict[str, float]) -> dict[str, float]:
    """Return ``{group}/{name}`` for every name of every group. Raises UndefinedMetricError for an unknown one."""
    names = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    if undefined := names.keys() - METRICS.keys():
        raise UndefinedMetricError(f"metric={min(undefined)!r} is not defined; define it in rayexp.telemetry.metrics")
    return names
