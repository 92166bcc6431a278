"""``rayexp show``: all that a store knows of one stage."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich import filesize

from rayexp.cli.place import StoreArgs
from rayexp.errors import first_line
from rayexp.formatting import one_line
from rayexp.stages import Stage, settings
from rayexp.store.artifacts import StoreError
from rayexp.store.index import Finished, StoreIndex, file_bytes, find
from rayexp.store.provenance import code_here
from rayexp.terminal import Column, duration, table, terminal_width

#: Of provenance, in this order; the rest is in provenance.json.
FACTS = ("started", "duration_s", "seconds", "host", "machine", "user", "python", "argv", "source", "git", "packages")
#: What a summary of results reads.
RESULTS = ["role", "cell", "log_mass", "greedy_correct"]


@dataclass(frozen=True)
class Show(StoreArgs):
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
        spec = index.specs([stage_id]).get(stage_id)
        problems = index.store.damaged([stage_id]).get(stage_id, []) if self.verify else []
        sections = [f"{stage_id}\n{one_line(finished.label)}"]
        if spec is None:
            sections.append("its spec.json is not there, or is none that this version can read")
        else:
            sections += _spec_sections(index, finished, spec, labels)
        sections.append(_titled("provenance", _provenance(finished)))
        sections.append(_titled("files", _files(index, finished, problems if self.verify else None)))
        sections += _contents(index, finished, spec, labels)
        if "model/config.json" in finished.files:
            sections.append(_titled("load", _loading(index, finished)))
        print("\n\n".join(sections))
        return 1 if problems else 0


def _titled(title: str, body: str) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in body.splitlines())])


def _spec_sections(index: StoreIndex, finished: Finished, spec: Stage, labels: Mapping[str, str]) -> list[str]:
    """Show settings of the whole lineage, and what in the store stands above and below."""
    sections = []
    if spec.id != finished.id:
        sections.append(
            f"not what this version makes: the same settings have the id {spec.id} today (`rayexp explain` says more)"
        )
    for each in spec.lineage:
        where = "this stage" if each is spec else each.id + ("" if each.id in labels else ", not in this store")
        rows = [(name, settings.shown(value)) for name, value in settings.own(each).items() if name != "kind"]
        text = table((Column("setting"), Column("value", cut=True)), rows, _width())
        sections.append(_titled(f"{each.kind} ({where})", text))
    children = _children(index, finished, labels)
    if children:
        rows = [(child, labels[child]) for child in children]
        sections.append(_titled("built on it", table((Column("stage"), Column("label", cut=True)), rows, _width())))
    return sections


def _children(index: StoreIndex, finished: Finished, labels: Mapping[str, str]) -> list[str]:
    """Return finished stages whose parent this is. Labels narrow them down; specs decide."""
    some = [i for i, label in labels.items() if label.rpartition("/")[0] == finished.label]
    specs = index.specs(some)
    return [i for i in sorted(some) if i in specs and (parent := specs[i].parent) and parent.id == finished.id]


def _provenance(finished: Finished) -> str:
    record = finished.provenance
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
            name, value = "took", None if finished.duration_s is None else duration(finished.duration_s)
        rows.append((name, "-" if value is None else str(value)))
    rows.append(("code", f"{finished.other_code}; here is {code_here()}" if finished.other_code else "the code here"))
    run_config = record.get("run_config")
    if isinstance(run_config, Mapping):
        shown = ("device", "train_workers", "rollout_workers", "store")
        rows.append(("run_config", ", ".join(f"{key} {run_config.get(key)}" for key in shown)))
    return table((Column("fact"), Column("value")), rows)


def _files(index: StoreIndex, finished: Finished, problems: list[str] | None) -> str:
    """Show every file of the manifest. problems: what reading them found; None if they were not read."""
    place = f"{index.store.url}/stages/{finished.id}"
    bad = {name for name in finished.files for text in problems or () if text.startswith(f"{place}/{name}: ")}
    good = "not read" if problems is None else "verified"
    rows = [
        (name, filesize.decimal(file_bytes(about)), "DAMAGED" if name in bad else good, about["sha256"])
        for name, about in finished.files.items()
    ]
    columns = (Column("file"), Column("size", right=True), Column("contents"), Column("sha256", cut=True))
    found = [one_line(text.removeprefix(f"{place}/")) for text in problems or ()]
    more = ["", "--verify reads them and compares"] if problems is None else found
    return "\n".join([f"{place}/", table(columns, rows, _width()), *more])


def _contents(index: StoreIndex, finished: Finished, spec: Stage | None, labels: Mapping[str, str]) -> list[str]:
    """Show last metrics and results by cell, verified as they are read."""
    sections = []
    measured = finished.id
    if "metrics.parquet" in finished.files:
        sections.append(_titled("metrics, last values", _last_metrics(index, finished.id)))
        own = [i for i in _children(index, finished, labels) if i.startswith("evaluate-")]
        measured = own[0] if own else ""
    if measured:
        exact = spec is None or spec.root.task.unique
        title = "results by cell" if measured == finished.id else f"results by cell ({measured})"
        sections.append(_titled(title, _results(index, measured, not exact)))
    return sections


def _last_metrics(index: StoreIndex, stage_id: str) -> str:
    try:
        rows = index.store.table(stage_id, "metrics.parquet").to_pylist()
        last = {str(row["metric"]): (int(row["step"]), float(row["value"])) for row in rows}
    except (StoreError, KeyError, TypeError, ValueError) as error:
        return one_line(str(error))
    shown = [(name, f"{value:.5g}", str(step)) for name, (step, value) in sorted(last.items())]
    return table((Column("metric"), Column("value", right=True), Column("step", right=True)), shown)


def _results(index: StoreIndex, stage_id: str, traces: bool) -> str:
    """Show mean Q and greedy accuracy of each cell, with intervals over prompts."""
    import numpy as np  # with pandas and scipy it takes a second

    from rayexp.evaluation.metrics import cluster_bootstrap, wilson

    try:
        rows = index.store.table(stage_id, "results.parquet").select(RESULTS).to_pandas()
    except (StoreError, KeyError, ValueError) as error:
        return one_line(first_line(error))
    mass = "gold-trace mass (at most Q)" if traces else "mean Q"
    columns = [Column("role"), Column("cell"), Column("prompts", right=True), Column(mass), Column("greedy accuracy")]
    shown = []
    for (role, cell), some in rows.groupby(["role", "cell"], sort=False):
        q = np.exp(some["log_mass"].to_numpy(dtype=float).clip(max=0))
        right = wilson(int(some["greedy_correct"].sum()), len(some))
        shown.append((role, cell, str(len(some)), str(cluster_bootstrap([q])), str(right)))
    return f"{table(columns, shown)}\nin brackets: 95 % intervals over prompts"


def _loading(index: StoreIndex, finished: Finished) -> str:
    if index.store.files.local:
        place = json.dumps(f"{os.path.abspath(index.store.files.root)}/stages/{finished.id}/model")
        return (
            "from transformers import LlamaForCausalLM\n"
            f"model = LlamaForCausalLM.from_pretrained({place})\n"
            f'# or: vllm.LLM({place}, skip_tokenizer_init=True, dtype="float32")'
        )
    return (
        "from rayexp.store.artifacts import Store\n"
        "from transformers import LlamaForCausalLM\n"
        f"with Store({json.dumps(index.store.url)}).model({json.dumps(finished.id)}) as folder:  # verified\n"
        "    model = LlamaForCausalLM.from_pretrained(folder)"
    )


def _width() -> int | None:
    """Return the room for a table that is indented."""
    width = terminal_width()
    return width - 2 if width else None
