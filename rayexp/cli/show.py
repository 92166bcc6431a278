"""``rayexp show``: print all that a store has about one stage."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich import filesize

from rayexp.cli.place import LookArgs
from rayexp.formatting import one_line
from rayexp.service.facts import stage as facts_of
from rayexp.stages import settings
from rayexp.terminal import Column, duration, table, terminal_width

#: Entries of provenance to print, in this order; the rest is in provenance.json.
FACTS = ("started", "duration_s", "seconds", "host", "machine", "user", "python", "argv", "source", "git", "packages")


@dataclass(frozen=True)
class Show(LookArgs):
    """Show one finished stage: lineage, provenance, files, last metrics, results by cell, how to load it."""

    stage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STAGE")]
    """An id, a prefix of one, or a label."""
    verify: bool = False
    """Read every file and compare its SHA-256 with the manifest."""

    def run(self) -> int:
        found = facts_of(self.index(), self.stage, self.verify)
        self.print_facts(found, _text)
        return 1 if found["problems"] else 0


def _text(facts: dict[str, Any]) -> str:
    sections = [f"{facts['id']}\n{one_line(facts['label'])}"]
    if facts["unread"]:
        kinds = ", ".join(map(one_line, facts["unread"]))
        sections.append(f"not imported, and shown as it is stored: {kinds}")
    if facts["lineage"]:
        sections += _lineage_sections(facts)
    else:
        sections.append("its spec.json is missing, or cannot be read by this version")
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
    """Return the settings of the whole lineage, and the stages of the store that are built on it."""
    sections = []
    if (today := facts["id_today"]) != facts["id"]:
        sections.append(
            f"made by an earlier version: today the same settings have the id {today} (`rayexp explain` says more)"
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
        return "cannot be read"
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
    rows.append(("code", f"{other}; the code here is {facts['code_here']}" if other else "the code here"))
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
            "from transformers import AutoModelForCausalLM\n"
            f"model = AutoModelForCausalLM.from_pretrained({place})\n"
            f'# or: vllm.LLM({place}, skip_tokenizer_init=True, dtype="float32")'
        )
    return (
        "from rayexp.store.artifacts import Store\n"
        "from transformers import AutoModelForCausalLM\n"
        f"with Store({json.dumps(model['store'])}).model({json.dumps(stage_id)}) as folder:  # verified\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder)"
    )


def _width() -> int | None:
    """Return the width of the terminal less the indent of a table."""
    width = terminal_width()
    return width - 2 if width else None
