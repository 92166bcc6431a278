"""The findings, made again.

    python -m findings run                     run all published studies, and write tables, figures and page
    python -m findings run depth-tiny          run some of them
    python -m findings write                   write page and figures again from the committed tables

Each study is one ``rayexp run``, which may be interrupted and then continues. Its tables are written as soon as it has
finished.
"""

import subprocess
import sys
from pathlib import Path

import tyro

from findings.collect import collect
from findings.figures import draw
from findings.page import PAGE, written
from findings.runs import BY_NAME, RUNS

SWEEP = Path(__file__).parents[1] / "jobs/sweep.py"


def run(names: tyro.conf.Positional[tuple[str, ...]] = (), store: str = "runs") -> None:
    """Run studies, and write their tables, figures and page.

    Args:
        names: of studies, as docs/findings has them; all if none is given.
        store: folder or URL.
    """
    if unknown := sorted(set(names) - set(BY_NAME)):
        sys.exit(f"there is no finding named {', '.join(unknown)}; choose from {', '.join(BY_NAME)}")
    for one in [BY_NAME[name] for name in names] or RUNS:
        study, *options = one.arguments
        sweep = subprocess.run([sys.executable, SWEEP, "--study", study, *options, "--store", store], check=False)
        if sweep.returncode:
            sys.exit(sweep.returncode)  # the command has printed the reason
        collect(one, store)
        write()


def write() -> None:
    """Write the page and its figures from the tables."""
    draw()
    PAGE.write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "write": write}, description=__doc__)
