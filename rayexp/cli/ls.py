"""``rayexp ls``: list the stages of a store, finished and unfinished."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rich import filesize

from rayexp.cli.place import LookArgs
from rayexp.formatting import one_line
from rayexp.service import facts
from rayexp.stages import KINDS
from rayexp.terminal import Column, abbreviated, duration, table, terminal_width

FINISHED = (
    Column("stage"),
    Column("started (UTC)", spare=True),
    Column("took", right=True),
    Column("size", right=True),
    Column("label", cut=True),
)
UNFINISHED = (
    Column("state"),
    Column("stage"),
    Column("step", right=True),
    Column("when (UTC)", spare=True),
    Column("label", cut=True),
)


@dataclass(frozen=True)
class Ls(LookArgs):
    """List the finished stages of a store, and those that are running, failed or incomplete."""

    kind: Literal["any", *KINDS] = "any"  # pyright: ignore[reportInvalidTypeForm]
    """Only stages of this kind."""
    study: str = ""
    """Only stages of this study, named by its folder below studies/ in the store."""
    sort: Literal["label", "started", "took", "size"] = "label"
    """Order of the finished stages; by took or size, the largest first."""

    def run(self) -> int:
        self.print_facts(facts.stages(self.index(), self.study, self.kind, self.sort), _text)
        return 0


def _text(found: dict[str, Any]) -> str:
    finished, unfinished, width = found["finished"], found["unfinished"], terminal_width()
    name = {stage["id"]: stage["id"] for stage in (*finished, *unfinished)}
    if width:
        name = abbreviated(list(name))
    tables = []
    if finished:
        tables.append(table(FINISHED, [_finished(stage, name[stage["id"]]) for stage in finished], width))
    if unfinished:
        rows = table(UNFINISHED, [_unfinished(stage, name[stage["id"]]) for stage in unfinished], width)
        tables.append("\n".join([rows, *(_why(stage) for stage in unfinished if stage["why"])]))
    whole = found["study"] and found["kind"] == "any"
    of = f" of {found['stages_of_study']} in the study" if whole else ""
    counts = f"{len(finished)} finished{of}, {filesize.decimal(found['bytes'])}; {len(unfinished)} unfinished"
    return "\n\n".join([*tables, f"{counts}; store {found['store']}"])


def _finished(stage: dict[str, Any], name: str) -> tuple[str, ...]:
    took = "-" if stage["duration_s"] is None else duration(stage["duration_s"])
    started = stage["started"][:16].replace("T", " ") or "-"
    return name, started, took, filesize.decimal(stage["bytes"]), stage["label"]


def _unfinished(stage: dict[str, Any], name: str) -> tuple[str, ...]:
    step = "-" if stage["step"] is None else str(stage["step"])
    when = "-" if stage["time"] is None else datetime.fromtimestamp(stage["time"], UTC).strftime("%Y-%m-%d %H:%M")
    return stage["state"], name, step, when, stage["label"] or "-"


def _why(stage: dict[str, Any]) -> str:
    return one_line(f"{'failed' if stage['state'] == 'failed' else 'failed before'}: {stage['why']}")
