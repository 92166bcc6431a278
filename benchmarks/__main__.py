"""Ratios of this project to its peers on this machine, one thread each.

    python -m benchmarks               all of them, in under four minutes
    python -m benchmarks world sync    some of them

Each benchmark runs in a fresh process. The exit code is 1 if a target was missed.
"""

import json
import os
import subprocess
import sys
from typing import Literal

import tyro

from benchmarks.measure import Row

Name = Literal["world", "plan", "pretrain", "rollouts", "sync"]
BENCHMARKS: tuple[Name, ...] = ("world", "plan", "pretrain", "rollouts", "sync")
#: Both sides get one thread, in whichever library they compute.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
HEADER = ("benchmark", "case", "ours", "peer", "ratio", "target", "verdict")
WIDTHS = (10, 26, 30, 30, 7, 14, 7)
VERDICTS = {True: "met", False: "MISSED", None: ""}


def main(names: tyro.conf.Positional[tuple[Name, ...]] = ()) -> int:
    """Run benchmarks and print their table.

    Args:
        names: Which ones; all if none is given.
    """
    print_row(HEADER)
    missed = False
    for name in names or BENCHMARKS:
        for row in rows(name):
            print_row((name, row.case, row.ours, row.peer, row.ratio, row.target, VERDICTS[row.met]))
            missed |= row.met is False
    return int(missed)


def rows(name: Name) -> list[Row]:
    """Run one benchmark. Ends the program with the benchmark's own words if it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmark {name} failed:\n{done.stdout}{done.stderr}")
    return [Row(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def print_row(cells: tuple[str, ...]) -> None:
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
