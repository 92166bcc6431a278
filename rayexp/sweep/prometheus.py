"""The metrics of a running sweep as Ray metrics, for Prometheus.

The driver sets all of them, because every stage reports to it. Ray drops a value that is not set again within two of
its export intervals (20 s), so the series of ended stages disappear, and a label for each stage is cheap. Results stay
while the sweep runs, with a series for each ``so_far.Place``.
"""

import time

from ray.util.metrics import Gauge

from rayexp.sweep.progress import Progress, Running
from rayexp.sweep.so_far import MeansSoFar, Place
from rayexp.telemetry.metrics import METRICS, STAGE_TAGS

SECONDS_BETWEEN_UPDATES = 4.0
#: Tags of the metrics that do not belong to one stage.
SWEEP_TAGS = {
    "sweep/trials": ("study", "state"),
    "sweep/remaining_s": ("study",),
    "result/mass": ("study", *Place._fields),
    "result/gain": ("study", *Place._fields),
}


class PrometheusExporter:
    """A view of a Progress; call it often."""

    def __init__(self, progress: Progress, means: MeansSoFar, study: str) -> None:
        self._progress, self._means = progress, means
        self._study = {"study": study}
        self._updated = 0.0
        self._gauges = {
            metric.name: Gauge(
                metric.exported,
                description=f"{metric.meaning} ({metric.unit})" if metric.unit else metric.meaning,
                tag_keys=SWEEP_TAGS.get(metric.name, STAGE_TAGS),
            )
            for metric in METRICS.values()
        }

    def __call__(self) -> None:
        if self._means.read_one() or time.monotonic() - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = time.monotonic()
        self._means.look_for(self._progress.finished)
        for state, count in self._progress.counts.items():
            self._gauges["sweep/trials"].set(count, self._study | {"state": state})
        self._gauges["sweep/remaining_s"].set(self._progress.remaining_s, self._study)
        for run in self._progress.running.values():
            if run.steps:
                self._set(run, self._study | {"stage": self._progress.plan.labels[run.stage.id]})
        for name, found in {"result/mass": self._means.masses(), "result/gain": self._means.gains()}.items():
            for place, value in found:
                self._gauges[name].set(value, self._study | place._asdict())

    def _set(self, run: Running, tags: dict[str, str]) -> None:
        numbers = {"sweep/stage_step": float(run.step), **run.numbers}
        if (remaining := self._progress.stage_remaining_s(run)) is not None:
            numbers["sweep/stage_remaining_s"] = remaining
        for name, value in numbers.items():
            self._gauges[name].set(value, tags)
