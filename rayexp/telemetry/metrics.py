"""Every number that a stage logs or a sweep exports: its name, unit and meaning, defined once.

``metrics.parquet`` has them under ``name``, as have the reports of a running stage and Tune's loggers; Prometheus has
them under ``exported``, which Ray prefixes with ``ray_``. The Grafana dashboard (``rayexp.telemetry.grafana``) is made
from this.
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
#: Tags of every exported metric of a stage. Only what runs is exported, so there are few of them at any time.
STAGE_TAGS = ("study", "stage")


class UndefinedMetricError(PermanentError):
    """A stage logs a number that nobody has said the meaning of."""


def named(**groups: dict[str, float]) -> dict[str, float]:
    """``{group}/{name}`` for every name of every group. Raises UndefinedMetricError for an unknown one."""
    names = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    if undefined := names.keys() - METRICS.keys():
        raise UndefinedMetricError(f"metric={min(undefined)!r} is not defined; define it in rayexp.telemetry.metrics")
    return names
