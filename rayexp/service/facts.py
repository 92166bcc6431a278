"""Facts about a store as plain values, which the commands print and the service shows.

Numbers are unrounded, in bytes and seconds; ids are whole.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rayexp.errors import first_line
from rayexp.parts import own_modules, unread_parts
from rayexp.service import chains
from rayexp.stages import Stage, kind_in, settings
from rayexp.store.artifacts import StoreError
from rayexp.store.garbage import StoreUse
from rayexp.store.index import Finished, StoreIndex, file_bytes, find
from rayexp.store.provenance import code_here
from rayexp.store.summaries import StageSummary

if TYPE_CHECKING:
    import pandas as pd

    from rayexp.reports.compare import Comparison

METRICS = "metrics.parquet"
#: Files of a study beside its report.
FILES = (
    "results.parquet",
    *(f"{name}.csv" for name in ("summary", "templates", "copies", "claims", "objections")),
)
#: Tables with verdicts, and the columns that hold each field of a verdict.
VERDICTS = {
    "claims": {"what": "title", "where": "setting", "measured": "measured", "verdict": "verdict"},
    "objections": {"what": "objection", "where": "place", "measured": "measured", "verdict": "verdict"},
}
#: Columns that a summary of results reads.
RESULTS = ["role", "cell", "log_mass", "greedy_correct", "sampled", "prompt", "gold", "completion"]
#: Percentiles of the mass in a cell from which examples are taken.
PERCENTILES = (10, 50, 90)
#: Rule by which stages are paired, without and with conditions.
PAIRED = {False: "agree in all settings along their lineage", True: "end their condition and agree in their root"}
#: Fields of a finished stage.
FACTS = ("id", "kind", "label", "started", "duration_s", "bytes")
ORDERS: dict[str, Callable[[StageSummary], object]] = {
    "label": lambda stage: (stage.label, stage.id),
    "started": lambda stage: (stage.started, stage.label),
    "took": lambda stage: -(stage.duration_s or 0.0),
    "size": lambda stage: -stage.bytes,
}


def stages(index: StoreIndex, study: str = "", kind: str = "any", sort: str = "label") -> dict[str, Any]:
    """Return the finished and the unfinished stages of a store. study: only those of this study; kind: only this kind;
    sort: one of ``ORDERS``. Raises StoreError if there is no such study."""
    among = set(index.study(study)) if study else None
    finished = [each for each in index.summaries(among).values() if kind in ("any", each.kind)]
    unfinished = [
        each for each in index.unfinished() if (among is None or each.id in among) and kind in ("any", kind_in(each.id))
    ]
    finished.sort(key=ORDERS[sort])  # pyright: ignore[reportArgumentType]
    return {
        "store": index.store.url,
        "study": study or None,
        "stages_of_study": None if among is None else len(among),
        "kind": kind,
        "bytes": sum(each.bytes for each in finished),
        "finished": [{name: getattr(each, name) for name in FACTS} for each in finished],
        "unfinished": [{"id": each.id, "kind": kind_in(each.id), **asdict(each)} for each in unfinished],
    }


def stage(index: StoreIndex, name: str, verify: bool = False) -> dict[str, Any]:
    """Return all that is known about one finished stage. name: an id, a prefix of an id, or a label. verify: read
    every file and compare it with the manifest. Raises ValueError if no stage has the name, AmbiguousError if several
    have."""
    labels = index.labels()
    stage_id = find(name, labels)
    finished = index.finished([stage_id])[stage_id]
    problems = index.store.damaged([stage_id]).get(stage_id, []) if verify else None
    spec = index.specs([finished.id]).get(finished.id)
    children = _children(index, finished, labels)
    folder = f"{index.store.url}/stages/{finished.id}"
    return {
        "id": finished.id,
        "kind": finished.kind,
        "label": finished.label,
        "studies": [each for each, labels in _plans(index).items() if finished.id in labels],
        "id_today": spec and spec.id,
        "unread": [part.kind for part in unread_parts(spec)] if spec else [],
        "lineage": spec and [_stage(each, each is spec or each.id in labels) for each in spec.lineage],
        "built_on_it": [{"id": child, "label": labels[child]} for child in children],
        "duration_s": finished.duration_s,
        "provenance": finished.provenance,
        "other_code": finished.other_code or None,
        "code_here": code_here(own_modules([spec] if spec else [])),
        "folder": folder,
        "files": _files(finished, folder, problems),
        "problems": problems,
        "metrics": _metrics(index, finished),
        "results": _results(index, finished, children),
        "model": _model(index, finished),
    }


def differences(index: StoreIndex, name: str, other: str) -> dict[str, Any]:
    """Return the settings of two finished stages along their lineages, differing ones first. Raises as ``stage`` does,
    and ValueError if the spec of one can't be read."""
    labels = index.labels()
    ids = [find(name, labels), find(other, labels)]
    specs = index.specs(ids)
    if unread := [stage_id for stage_id in ids if stage_id not in specs]:
        raise ValueError(f"stage={unread[0]!r} has no spec.json that this version can read")
    mine, theirs = (settings.placed(specs[stage_id]) for stage_id in ids)
    rows = [
        {"of": place, "setting": name, "here": mine.get(setting), "there": theirs.get(setting)}
        for setting in dict.fromkeys([*mine, *theirs])
        for place, name in [setting]
        if name != "kind"
    ]
    return {
        "id": ids[0],
        "other": {"id": ids[1], "label": labels[ids[1]]},
        "settings": sorted(rows, key=lambda row: row["here"] == row["there"]),
        "differing": sum(row["here"] != row["there"] for row in rows),
    }


def alike(index: StoreIndex, name: str) -> list[dict[str, str]]:
    """Return the other finished stages of the same kind in the studies of a stage. Raises as ``stage`` does."""
    labels = index.labels()
    stage_id = find(name, labels)
    planned = [stages for stages in _plans(index).values() if stage_id in stages]
    among = dict.fromkeys(each for stages in planned for each in stages if each in labels) or labels
    same = [each for each in among if kind_in(each) == kind_in(stage_id) and each != stage_id]
    return [{"id": each, "label": labels[each]} for each in same]


def _plans(index: StoreIndex) -> dict[str, dict[str, str]]:
    """Return the labels, by id, of the stages of every study whose plan can be read."""
    found = {}
    for name in index.studies():
        with suppress(StoreError):
            found[name] = index.study(name)
    return found


def _stage(stage: Stage, there: bool) -> dict[str, Any]:
    own = {name: value for name, value in settings.own(stage).items() if name != "kind"}
    return {"id": stage.id, "kind": stage.kind, "in_store": there, "settings": own}


def _children(index: StoreIndex, finished: Finished, labels: Mapping[str, str]) -> list[str]:
    """Return the finished stages that are built on this one. Labels narrow them down; specs decide."""
    some = [i for i, label in labels.items() if label.rpartition("/")[0] == finished.label]
    specs = index.specs(some)
    return [i for i in sorted(some) if i in specs and (parent := specs[i].parent) and parent.id == finished.id]


def _files(finished: Finished, folder: str, problems: list[str] | None) -> list[dict[str, Any]]:
    """Return every file of the manifest, and whether its content was verified."""
    bad = {name for name in finished.files for text in problems or () if text.startswith(f"{folder}/{name}: ")}
    good = "not read" if problems is None else "verified"
    return [
        {
            "name": name,
            "bytes": file_bytes(about),
            "contents": "damaged" if name in bad else good,
            "sha256": about["sha256"],
        }
        for name, about in finished.files.items()
    ]


def _metrics(index: StoreIndex, finished: Finished) -> dict[str, Any] | None:
    """Return the last value of every metric, or why they can't be read; None if the stage has none."""
    if METRICS not in finished.files:
        return None
    try:
        rows = index.store.table(finished.id, METRICS).to_pylist()
        last = {str(row["metric"]): {"step": int(row["step"]), "value": float(row["value"])} for row in rows}
    except (StoreError, KeyError, TypeError, ValueError) as error:
        return {"problem": str(error), "last": {}}
    return {"problem": None, "last": dict(sorted(last.items()))}


def _results(index: StoreIndex, finished: Finished, children: Sequence[str]) -> dict[str, Any] | None:
    """Return the results of a measurement, or of the measurement of a model, by cell; None if there is none."""
    measured = finished.id
    if METRICS in finished.files:
        own = [i for i in children if i.startswith("evaluate-")]
        if not own:
            return None
        measured = own[0]
    try:
        rows = index.store.table(measured, "results.parquet").select(RESULTS).to_pandas()
    except (StoreError, KeyError, ValueError) as error:
        return {"stage": measured, "exact": None, "problem": first_line(error), "cells": [], "examples": []}
    exact = not bool(rows["sampled"].any())
    return {"stage": measured, "exact": exact, "problem": None, "cells": _cells(rows), "examples": _examples(rows)}


def _cells(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return mean Q and greedy accuracy of each cell, with intervals over prompts."""
    import numpy as np  # with pandas and scipy it takes a second

    from rayexp.evaluation.metrics import cluster_bootstrap, wilson

    found = []
    for (role, cell), some in rows.groupby(["role", "cell"], sort=False):
        q = cluster_bootstrap([np.exp(some["log_mass"].to_numpy(dtype=float).clip(max=0))])
        greedy = wilson(int(some["greedy_correct"].sum()), len(some))
        means = {
            name: {"mean": each.mean, "low": each.low, "high": each.high}
            for name, each in (("q", q), ("greedy_accuracy", greedy))
        }
        found.append({"role": role, "cell": cell, "prompts": len(some), **means})
    return found


def _examples(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return, for each cell, the prompts at ``PERCENTILES`` of the mass, with their completions."""
    found = []
    for (role, cell), some in rows.groupby(["role", "cell"], sort=False):
        ordered = some.sort_values("log_mass", kind="stable")
        for percentile in PERCENTILES:
            row = ordered.iloc[round(percentile / 100 * (len(ordered) - 1))]
            texts = {name: str(row[name]) for name in ("prompt", "gold", "completion")}
            about = {"role": role, "cell": cell, "percentile": percentile, "q": math.exp(min(row["log_mass"], 0.0))}
            found.append({**about, **texts, "right": bool(row["greedy_correct"])})
    return found


def _model(index: StoreIndex, finished: Finished) -> dict[str, Any] | None:
    """Return the place of the weights; None if the stage has none."""
    if "model/config.json" not in finished.files:
        return None
    local = index.store.files.local
    folder = f"{os.path.abspath(index.store.files.root)}/stages/{finished.id}/model" if local else None
    return {"store": index.store.url, "folder": folder}


def studies(index: StoreIndex) -> dict[str, Any]:
    """Return every study of a store: its kind and scale, its progress, and the count of each verdict."""
    about = {name: {"stages": labels, **_of_plan(index, name)} for name, labels in _plans(index).items()}
    finished = index.store.finished_ids({stage_id for each in about.values() for stage_id in each["stages"]})
    running = index.running()
    return {
        "store": index.store.url,
        "studies": [
            {
                "name": name,
                "study": each["study"],
                "scale": each["scale"],
                "stages": len(each["stages"]),
                "finished": len(finished & each["stages"].keys()),
                "running": len(running & each["stages"].keys()),
                "verdicts": Counter(row["verdict"] for row in _verdicts(index, name)),
            }
            for name, each in about.items()
        ],
    }


def study(index: StoreIndex, name: str) -> dict[str, Any]:
    """Return one study: its verdicts, its stages with their states in the order of its plan, and its files. Raises
    StoreError if there is none."""
    labels = index.study(name)
    finished, running = index.finished(labels), index.running()
    failures = index.failures(labels)

    parents = chains.parents(labels, index.specs)

    def state(stage_id: str) -> str:
        if stage_id in finished:
            return "finished"
        return "running" if stage_id in running else "failed" if stage_id in failures else "missing"

    planned = [
        {
            "id": stage_id,
            "kind": kind_in(stage_id),
            "label": label,
            "parent": parents[stage_id],
            "state": state(stage_id),
            "duration_s": finished[stage_id].duration_s if stage_id in finished else None,
            "why": failures[stage_id].why if stage_id in failures else "",
        }
        for stage_id, label in labels.items()
    ]
    return {
        "name": name,
        **_of_plan(index, name),
        "states": Counter(each["state"] for each in planned),
        "verdicts": _verdicts(index, name),
        "stages": planned,
        "files": [each for each in FILES if each in index.store.files.names(f"studies/{name}")],
        "report": _report(index, name, finished.values()),
    }


def _report(index: StoreIndex, name: str, finished: Iterable[Finished]) -> dict[str, Any]:
    """Return when the report of a study was written, and whether no stage has finished since."""
    try:
        written = index.store.files.modified(f"studies/{name}/report/index.html")
    except FileNotFoundError:
        return {"written": None, "current": False}
    ended = [end for stage in finished if (end := _ended(stage))]
    return {"written": written.isoformat(timespec="seconds"), "current": all(end <= written for end in ended)}


def _ended(stage: Finished) -> datetime | None:
    """Return when a stage finished; None if that is unknown."""
    try:
        started = datetime.fromisoformat(stage.started)
        return started + timedelta(seconds=stage.duration_s or 0.0) if started.tzinfo else None
    except (ValueError, OverflowError):
        return None


def garbage(index: StoreIndex, study: str = "") -> dict[str, Any]:
    """Return what each study takes of a store, and what no study needs. study: one to give up. Raises as ``StoreUse``
    does."""
    use = StoreUse(index, study)
    found = use.garbage()
    return {
        "store": index.store.url,
        "giving_up": study or None,
        "studies": [asdict(each) for each in use.studies()],
        "garbage": [asdict(each) for each in found],
        "bytes": sum(each.bytes for each in found),
    }


def _of_plan(index: StoreIndex, name: str) -> dict[str, str]:
    about = index.about(name)
    return {field: str(about.get(field) or "") for field in ("study", "scale")}


def _verdicts(index: StoreIndex, name: str) -> list[dict[str, str]]:
    """Return the verdicts on claims and objections in a study's last report, in one form."""
    paths = {table: f"studies/{name}/{table}.csv" for table in VERDICTS}
    there = index.store.files.read_existing(list(paths.values()))
    return [
        {field: str(row.get(column) or "") for field, column in VERDICTS[table].items()}
        for table, path in paths.items()
        if path in there
        for row in csv.DictReader(io.StringIO(there[path].decode(errors="replace")))
    ]


def comparisons(by: str | None, found: "Iterable[Comparison]") -> dict[str, Any]:
    """Return comparisons of one study with others, or of its parts. by: the setting whose values the parts have."""
    return {
        "by": by,
        "comparisons": [
            {
                "a": each.a.title,
                "b": each.b.title,
                **each.values,
                "of_conditions": each.a.by == "condition",
                "differing": [setting._asdict() for setting in each.differing],
                "table": each.table.to_dict("records"),
                "unpaired": each.unpaired,
                "notes": each.notes,
            }
            for each in found
        ],
    }
