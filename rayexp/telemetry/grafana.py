"""The Grafana dashboard of a sweep, made from ``rayexp.telemetry.metrics``: one row per group, one panel per metric.

python -m rayexp.telemetry.grafana        writes deploy/grafana/rayexp.json again
"""

import json
from pathlib import Path
from typing import Any

from rayexp.stages import KINDS, Metric
from rayexp.telemetry.metrics import METRICS

FILE = Path(__file__).parents[2] / "deploy/grafana/rayexp.json"
#: Title of a row, by the first part of the names of its metrics.
TITLES = {"sweep": "Sweep", "result": "Results so far", "rollout": "Rollouts"} | {
    kind: stage.name for kind, stage in KINDS.items()
}
#: Grafana's own units; any other unit is written behind the number.
UNITS = {"": "none", "share": "percentunit", "s": "s"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 24  # of a panel, and of Grafana's grid

#: Legend of a line with a result.
RESULT = "{{condition}} {{ood_ratio}}, {{role}} cells after {{stage}} {{kl_beta}}"
#: Query and legend of metrics that do not have one line per stage.
QUERIES = {
    "sweep/trials": ('sum by (state) ({name}{{study=~"$study"}})', "{{state}}"),
    "sweep/remaining_s": ('max by (study) ({name}{{study=~"$study"}})', "{{study}}"),
    "result/mass": ('{name}{{study=~"$study"}}', RESULT),
    "result/gain": ('{name}{{study=~"$study"}}', RESULT),
}
STAGE_QUERY = ('max by (stage) ({name}{{study=~"$study", stage=~"$stage"}})', "{{stage}}")


def exposed(metric: Metric) -> str:
    """Return the name of a metric in Prometheus, with Ray's prefix."""
    return f"ray_{metric.exported}"


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model, for file provisioning or import."""
    panels: list[dict[str, Any]] = []
    y = 0
    for group in dict.fromkeys(map(_group, METRICS.values())):
        title = TITLES[group][:1].upper() + TITLES[group][1:]
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})
        y += 1
        if group == "result":
            panels.append(_figure(y))
            y += HEIGHT
        metrics = [metric for metric in METRICS.values() if _group(metric) == group]
        for place, metric in enumerate(metrics):
            row, column = divmod(place, COLUMNS // WIDTH)
            panels.append(_panel(metric, column * WIDTH, y + row * HEIGHT))
        y += -(-len(metrics) // (COLUMNS // WIDTH)) * HEIGHT
    return {
        "uid": "rayexp",
        "title": "rayexp",
        "tags": ["rayexp", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _variable("study"), _variable("stage")]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _group(metric: Metric) -> str:
    return metric.name.partition("/")[0]


def _panel(metric: Metric, x: int, y: int) -> dict[str, Any]:
    query, legend = QUERIES.get(metric.name, STAGE_QUERY)
    return {
        "type": "timeseries",
        "title": metric.name,
        "description": metric.meaning,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": UNITS.get(metric.unit, f"suffix: {metric.unit}"), "custom": {"showPoints": "auto"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": "A",
                "datasource": SOURCE,
                "expr": query.format(name=exposed(metric)),
                "legendFormat": legend,
            }
        ],
    }


def _figure(y: int) -> dict[str, Any]:
    """Return the paper's figure so far: mean Q of OOD cells by share of OOD samples, a bar for each stage."""
    mass = f'avg by (ood_ratio, stage, kl_beta) ({exposed(METRICS["result/mass"])}{{study=~"$study", role="ood"}})'
    matrix = {"columnField": "after", "rowField": "ood_ratio", "valueField": "Value"}
    target = {
        "refId": "A",
        "datasource": SOURCE,
        "expr": f'label_join({mass}, "after", " ", "stage", "kl_beta")',
        "format": "table",
        "instant": True,
    }
    return {
        "type": "barchart",
        "title": "Mean Q of OOD cells by OOD ratio",
        "description": "Over prompts, seeds and conditions that were measured so far; after each stage, with its beta",
        "datasource": SOURCE,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": "none", "min": 0, "max": 1}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [target],
        "transformations": [{"id": "groupingToMatrix", "options": matrix}],
    }


def _datasource() -> dict[str, Any]:
    """Return the variable for the Prometheus to query."""
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(tag: str) -> dict[str, Any]:
    """Return the variable for the values of a tag; at first all are chosen."""
    metric = "sweep/trials" if tag == "study" else "sweep/stage_step"
    within = "" if tag == "study" else '{study=~"$study"}'
    query = f"label_values({exposed(METRICS[metric])}{within}, {tag})"
    return {
        "name": tag,
        "label": tag.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": tag},
        "definition": query,
        "refresh": 2,  # when the time range changes, too: stages come and go
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def text() -> str:
    """Return the content of deploy/grafana/rayexp.json."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
