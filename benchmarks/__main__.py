"""Ratios of this project to its peers on this machine, one thread each.

    python -m benchmarks               all of them, in about half an hour
    python -m benchmarks task sync     some of them
    python -m benchmarks --write       all of them, and put their tables into docs/performance.md
    python -m benchmarks regression    the short form that CI runs

Each benchmark runs in a fresh process. The exit code is 1 if a target was missed. Peers come with the extra ``bench``.
"""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import tyro

from benchmarks.measure import Row
from rayexp import terminal
from rayexp.cli.command import run_command, working

OnThePage = Literal[
    "task",
    "text",
    "memory",
    "pretrained",
    "plan",
    "pretrain",
    "rollouts",
    "step",
    "sync",
    "evaluation",
    "staleness",
    "growth",
    "nodes",
    "sweep",
    "service",
    "store",
]
BENCHMARKS: tuple[OnThePage, ...] = get_args(OnThePage)
Name = OnThePage | Literal["regression"]
#: One thread for both sides, in every library.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
#: Benchmarks that use the whole machine.
WHOLE_MACHINE = ("memory", "nodes", "sweep", "service", "store")
HEADER = ("benchmark", "case", "ours", "peer", "ratio", "target", "verdict")
WIDTHS = (10, 30, 34, 24, 7, 14, 7)
VERDICTS = {True: "met", False: "MISSED", None: ""}
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class StudyArgs:
    """Run benchmarks and print their table."""

    names: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Names of benchmarks; all if none is given."""
    write: bool = False
    """Put the tables of these benchmarks into docs/performance.md, in place of those of the same kind of machine."""


def main() -> int:
    """Run the benchmarks of the command line. Return the exit code."""
    choice = terminal.parse_args(StudyArgs, None, prog="python -m benchmarks", description=__doc__)
    print_row(HEADER)
    missed = False
    for name in choice.names or BENCHMARKS:
        with working():
            found = rows(name)
            for row in found:
                print_row((name, *cells(row)))
                missed |= row.met is False
            if choice.write:
                PAGE.write_text(with_table(PAGE.read_text(), name, found))
    return int(missed)


def rows(name: Name) -> list[Row]:
    """Run one benchmark. If it fails, end the program with the benchmark's own error message."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    environment = os.environ | ({} if name in WHOLE_MACHINE else ONE_THREAD)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmark {name} failed:\n{done.stdout}{done.stderr}")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('[{"case"')]
    return [Row(**fields) for fields in json.loads(line)]


def cells(row: Row) -> tuple[str, ...]:
    return (row.case, row.ours, row.peer, row.ratio, row.target, VERDICTS[row.met])


def print_row(texts: tuple[str, ...]) -> None:
    print("  ".join(text.ljust(width) for text, width in zip(texts, WIDTHS, strict=True)).rstrip(), flush=True)


def with_table(page: str, name: str, found: list[Row]) -> str:
    """Return the page with the table of one benchmark on this kind of machine replaced. Other tables stay.

    Raises ValueError if the page lacks the marks around the tables.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE} has no place for the benchmark {name}; add a line {begin} and a line {end}")
    head, _, rest = page.partition(begin)
    between, _, tail = rest.partition(end)
    others = [text.strip() for text in re.split(r"(?=^Run on )", between, flags=re.MULTILINE) if text.strip()]
    machine = f"{os.cpu_count()} cores of {processor()}"
    lines = [
        f"Run on {datetime.now(UTC):%Y-%m-%d}, {machine}, torch {version('torch')}.",
        "",
        "| " + " | ".join(HEADER[1:]) + " |",
        "|---|---|---|---:|---|---|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in found),
    ]
    tables = [text for text in others if f", {machine}, torch" not in text.splitlines()[0]] + ["\n".join(lines)]
    return "".join([head, begin, "\n", "\n\n".join(tables), "\n", end, tail])


def processor() -> str:
    """Return the processor's name."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(run_command(main))
