"""``rayexp show``: all that a store knows of one stage."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich import filesize

from rayexp.cli.place import LookArgs
from rayexp.errors import first_line
from rayexp.formatting import one_line
from rayexp.parts import own_modules, unread_parts
from rayexp.stages import Stage, settings
from rayexp.store.artifacts import StoreError
from rayexp.store.index import Finished, StoreIndex, file_bytes, find
from rayexp.store.provenance import code_here
from rayexp.terminal import Column, duration, table, terminal_width

if TYPE_CHECKING:
    import pandas as pd

#: Of provenance, in this order; the rest is in provenance.json.
FACTS = ("started", "duration_s", "seconds", "host", "machine", "user", "python", "argv", "source", "git", "packages")
METRICS = "metrics.parquet"
#: What a summary of results reads.
RESULTS = ["role", "cell", "log_mass", "greedy_correct", "sampled"]


@dataclass(frozen=True)
class Show(LookArgs):
    """Show one finished stage: lineage, provenance, files, last metrics, results by cell, how to load it."""

    stage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STAGE")]
    """An id, the beginning of one, or a label."""
    verify: bool = False
    """Read every file and compare its SHA-256 with the manifest."""

    def run(self) -> int:
        index = self.index()
        labels = index.labels()
        stage_id = find(self.stage, labels)
        finished = index.finished([stage_id])[stage_id]
        problems = index.store.damaged([stage_id]).get(stage_id, []) if self.verify else None
        self.print_facts(_facts(index, finished, labels, problems), _text)
        return 1 if problems else 0


def _facts(
    index: StoreIndex, finished: Finished, labels: Mapping[str, str], problems: list[str] | None
) -> dict[str, Any]:
    """Gather all that is shown. problems: what reading the files found; None if they were not read."""
    spec = index.specs([finished.id]).get(finished.id)
    children = _children(index, finished, labels)
    folder = f"{index.store.url}/stages/{finished.id}"
    return {
        "id": finished.id,
        "kind": finished.kind,
        "label": finished.label,
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


def _stage(stage: Stage, there: bool) -> dict[str, Any]:
    own = {name: value for name, value in settings.own(stage).items() if name != "kind"}
    return {"id": stage.id, "kind": stage.kind, "in_store": there, "settings": own}


def _children(index: StoreIndex, finished: Finished, labels: Mapping[str, str]) -> list[str]:
    """Return finished stages whose parent this is. Labels narrow them down; specs decide."""
    some = [i for i, label in labels.items() if label.rpartition("/")[0] == finished.label]
    specs = index.specs(some)
    return [i for i in sorted(some) if i in specs and (parent := specs[i].parent) and parent.id == finished.id]


def _files(finished: Finished, folder: str, problems: list[str] | None) -> list[dict[str, Any]]:
    """Return every file of the manifest, and what is known of its contents."""
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
    """Return the last value of every metric, or why they can't be read; None where the stage has none."""
    if METRICS not in finished.files:
        return None
    try:
        rows = index.store.table(finished.id, METRICS).to_pylist()
        last = {str(row["metric"]): {"step": int(row["step"]), "value": float(row["value"])} for row in rows}
    except (StoreError, KeyError, TypeError, ValueError) as error:
        return {"problem": str(error), "last": {}}
    return {"problem": None, "last": dict(sorted(last.items()))}


def _results(index: StoreIndex, finished: Finished, children: Sequence[str]) -> dict[str, Any] | None:
    """Return the results of a measurement, or of the one of a model, by cell; None where there is none."""
    measured = finished.id
    if METRICS in finished.files:
        own = [i for i in children if i.startswith("evaluate-")]
        if not own:
            return None
        measured = own[0]
    try:
        rows = index.store.table(measured, "results.parquet").select(RESULTS).to_pandas()
    except (StoreError, KeyError, ValueError) as error:
        return {"stage": measured, "exact": None, "problem": first_line(error), "cells": []}
    return {"stage": measured, "exact": not bool(rows["sampled"].any()), "problem": None, "cells": _cells(rows)}


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


def _model(index: StoreIndex, finished: Finished) -> dict[str, Any] | None:
    """Return what it takes to load the weights; None where there are none."""
    if "model/config.json" not in finished.files:
        return None
    local = index.store.files.local
    folder = f"{os.path.abspath(index.store.files.root)}/stages/{finished.id}/model" if local else None
    return {"store": index.store.url, "folder": folder}


def _text(facts: dict[str, Any]) -> str:
    sections = [f"{facts['id']}\n{one_line(facts['label'])}"]
    if facts["unread"]:
        kinds = ", ".join(map(one_line, facts["unread"]))
        sections.append(f"not imported, and shown as it is stored: {kinds}")
    if facts["lineage"]:
        sections += _lineage_sections(facts)
    else:
        sections.append("its spec.json is not there, or is none that this version can read")
    sections.append(_titled("provenance", _provenance_text(facts)))
    sections.append(_titled("files", _files_text(facts)))
    if facts["metrics"]:
        sections.append(_titled("metrics, last values", _metrics_text(facts["metrics"])))
    if results := facts["results"]:
        of = "" if results["stage"] == facts["id"] else f" ({results['stage']})"
        sections.append(_titled(f"results by cell{of}", _results_text(results)))
    if facts["model"]:
        sections.append(_titled("load", _loading(facts["id"], facts["model"])))
    return "\n\n".join(sections)


def _titled(title: str, body: str) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in body.splitlines())])


def _lineage_sections(facts: dict[str, Any]) -> list[str]:
    """Show settings of the whole lineage, and what in the store stands above and below."""
    sections = []
    if (today := facts["id_today"]) != facts["id"]:
        sections.append(
            f"not what this version makes: the same settings have the id {today} today (`rayexp explain` says more)"
        )
    for each in facts["lineage"]:
        where = each["id"] + ("" if each["in_store"] else ", not in this store")
        where = "this stage" if each is facts["lineage"][-1] else where
        rows = [(name, settings.shown(value)) for name, value in each["settings"].items()]
        text = table((Column("setting"), Column("value", cut=True)), rows, _width())
        sections.append(_titled(f"{each['kind']} ({where})", text))
    if children := [(child["id"], child["label"]) for child in facts["built_on_it"]]:
        text = table((Column("stage"), Column("label", cut=True)), children, _width())
        sections.append(_titled("built on it", text))
    return sections


def _provenance_text(facts: dict[str, Any]) -> str:
    record = facts["provenance"]
    if not record:
        return "none that can be read"
    rows = []
    for name in FACTS:
        value = record.get(name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif name == "argv" and isinstance(value, list):
            value = shlex.join(map(str, value)) or None
        elif name == "duration_s":
            name, value = "took", None if facts["duration_s"] is None else duration(facts["duration_s"])
        rows.append((name, "-" if value is None else str(value)))
    other = facts["other_code"]
    rows.append(("code", f"{other}; here is {facts['code_here']}" if other else "the code here"))
    run_config = record.get("run_config")
    if isinstance(run_config, Mapping):
        shown = ("device", "train_workers", "rollout_workers", "store")
        rows.append(("run_config", ", ".join(f"{key} {run_config.get(key)}" for key in shown)))
    return table((Column("fact"), Column("value")), rows)


def _files_text(facts: dict[str, Any]) -> str:
    place, problems = f"{facts['folder']}/", facts["problems"]
    rows = [
        (
            file["name"],
            filesize.decimal(file["bytes"]),
            file["contents"].replace("damaged", "DAMAGED"),
            file["sha256"],
        )
        for file in facts["files"]
    ]
    columns = (Column("file"), Column("size", right=True), Column("contents"), Column("sha256", cut=True))
    found = [one_line(text.removeprefix(place)) for text in problems or ()]
    more = ["", "--verify reads them and compares"] if problems is None else found
    return "\n".join([place, table(columns, rows, _width()), *more])


def _metrics_text(metrics: dict[str, Any]) -> str:
    if metrics["problem"]:
        return one_line(metrics["problem"])
    shown = [(name, f"{last['value']:.5g}", str(last["step"])) for name, last in metrics["last"].items()]
    return table((Column("metric"), Column("value", right=True), Column("step", right=True)), shown)


def _results_text(results: dict[str, Any]) -> str:
    if results["problem"]:
        return one_line(results["problem"])
    mass = "mean Q" if results["exact"] else "gold-trace mass (at most Q)"
    columns = [Column("role"), Column("cell"), Column("prompts", right=True), Column(mass), Column("greedy accuracy")]
    rows = [
        (each["role"], each["cell"], str(each["prompts"]), _interval(each["q"]), _interval(each["greedy_accuracy"]))
        for each in results["cells"]
    ]
    return f"{table(columns, rows)}\nin brackets: 95 % intervals over prompts"


def _interval(of: dict[str, float]) -> str:
    return f"{of['mean']:.3g} [{of['low']:.3g}, {of['high']:.3g}]"


def _loading(stage_id: str, model: dict[str, Any]) -> str:
    if model["folder"]:
        place = json.dumps(model["folder"])
        return (
            "from transformers import LlamaForCausalLM\n"
            f"model = LlamaForCausalLM.from_pretrained({place})\n"
            f'# or: vllm.LLM({place}, skip_tokenizer_init=True, dtype="float32")'
        )
    return (
        "from rayexp.store.artifacts import Store\n"
        "from transformers import LlamaForCausalLM\n"
        f"with Store({json.dumps(model['store'])}).model({json.dumps(stage_id)}) as folder:  # verified\n"
        "    model = LlamaForCausalLM.from_pretrained(folder)"
    )


def _width() -> int | None:
    """Return the room for a table that is indented."""
    width = terminal_width()
    return width - 2 if width else None
