"""``rayexp gc``: list what each study takes of a store and what no study needs any more, and remove the latter."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import filesize

from rayexp.cli.command import working
from rayexp.cli.place import LookArgs
from rayexp.service import facts
from rayexp.store import garbage
from rayexp.terminal import Column, table, terminal_width

STUDIES = (
    Column("study", cut=True),
    Column("stages", right=True),
    Column("finished", right=True),
    Column("earlier version", right=True, spare=True),
    Column("size", right=True),
    Column("its own", right=True),
    Column("report"),
)
GARBAGE = (Column("not needed"), Column("size", right=True), Column("path", cut=True), Column("label", spare=True))
#: Names of the kinds of garbage: of one, and of several.
NAMES: dict[garbage.Kind, tuple[str, str]] = {
    "stage": ("stage", "stages"),
    "earlier": ("stage of an earlier version", "stages of an earlier version"),
    "checkpoints": ("folder of checkpoints", "folders of checkpoints"),
    "leftover": ("leftover of a write", "leftovers of writes"),
    "replaced": ("replaced stage", "replaced stages"),
    "driver": ("file of a driver that is gone", "files of drivers that are gone"),
    "study": ("study", "studies"),
}


@dataclass(frozen=True)
class Gc(LookArgs):
    """List what each study takes of a store and what no study needs any more; remove the latter if you agree.

    On a terminal it asks. Elsewhere, and with --json, it removes nothing without --yes.
    """

    study: str = ""
    """Give up this study: list and remove its folder and the stages that only it needs."""
    yes: bool = False
    """Remove without asking."""

    def run(self) -> int:
        index = self.index()
        found = facts.garbage(index, self.study)
        if not self.json:
            self.print_facts(found, _text)
        removed = list[garbage.Garbage]()
        if found["garbage"] and (self.yes or (not self.json and _agreed(found["garbage"]))):
            with working():
                removed = garbage.remove(index, {each["path"] for each in found["garbage"]}, self.study)
        if self.json:
            self.print_facts(found | {"removed": [each.path for each in removed]}, _text)
        elif removed:
            print(f"removed {_counted([vars(each) for each in removed])}")
        return 0


def _agreed(found: Sequence[dict[str, Any]]) -> bool:
    """Return whether the person at the terminal wants this removed; False where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("nothing was removed; give --yes, or run this on a terminal")
        return False
    try:
        answer = input(f"Remove {_counted(found)}? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def _text(found: dict[str, Any]) -> str:
    width = terminal_width()
    studies, unneeded = found["studies"], found["garbage"]
    tables = []
    if studies:
        tables.append(table(STUDIES, [_study(each) for each in studies], width))
    if unneeded:
        tables.append(table(GARBAGE, [_row(each) for each in unneeded], width))
    what = f"only the study {found['giving_up']} needs" if found["giving_up"] else "no study needs"
    said = f"{what} {_counted(unneeded)}" if unneeded else "everything here is needed by some study"
    return "\n\n".join([*tables, f"{said}; store {found['store']}"])


def _study(study: dict[str, Any]) -> tuple[str, ...]:
    counts = (str(study[name]) for name in ("stages", "finished", "earlier"))
    sizes = (filesize.decimal(study[name]) for name in ("bytes", "own_bytes"))
    return study["name"], *counts, *sizes, "yes" if study["has_report"] else "no"


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    return NAMES[each["kind"]][0], filesize.decimal(each["bytes"]), each["path"], each["label"] or "-"


def _counted(found: Sequence[dict[str, Any]]) -> str:
    """Return how many of each kind there are, and their size."""
    counts = Counter(each["kind"] for each in found)
    parts = [f"{count} {NAMES[kind][count > 1]}" for kind, count in counts.items()]
    return f"{', '.join(parts)}, {filesize.decimal(sum(each['bytes'] for each in found))}"
