"""Reports of unfinished studies, which are made again while somebody reads them.

A child process with low priority makes one report at a time in a temporary folder of the service; nothing is written to
the store. A report is made only when it is requested and a stage has finished since the last one: at most every
``EVERY_S`` seconds, and after a rest of ``REST`` times the duration of the last one.

    python -m rayexp.service.live       writes the report; reads {"url", "name", "folder", "nice"} from standard input
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rayexp.errors import first_line

#: Least seconds between the beginnings of two reports; the rest after a report, as a multiple of its duration.
EVERY_S, REST = 30.0, 10.0
#: Seconds after which a report is given up.
LIMIT_S = 900.0
#: Niceness of the child process. At 19 it would get no time while a sweep uses all cores.
NICE = 10
COMMAND = (sys.executable, "-m", "rayexp.service.live")


@dataclass(frozen=True)
class _Made:
    """The last report of a study: its folder, its beginning, and the ids of the stages that were finished then."""

    folder: Path
    began: datetime
    finished: frozenset[str]


class LiveReports:
    """The newest reports of the studies of a store, in addition to those in the store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._place = TemporaryDirectory(prefix="rayexp-reports-", ignore_cleanup_errors=True)
        self._made: dict[str, _Made] = {}
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()
        self._in_work = ""
        self._child: subprocess.Popen[str] | None = None
        self._not_before = -float("inf")

    def ask(self, name: str, finished: Collection[str]) -> None:
        """Begin to make the report of a study with these finished stages, unless it is not due yet or would show
        nothing new."""
        with self._lock:
            made = self._made.get(name)
            new = made is None or made.finished != set(finished)
            if not finished or not new or self._in_work or time.monotonic() < self._not_before:
                return
            self._in_work = name
        threading.Thread(target=self._make, args=(name, frozenset(finished)), daemon=True).start()

    def file(self, name: str, file: str, since: datetime | None) -> bytes | None:
        """Return a file of the last report of a study; None if no report was begun later than ``since``."""
        with self._lock:
            made = self._made.get(name)
            if made is None or (since and made.began <= since):
                return None
            path = made.folder / file
            return path.read_bytes() if path.is_file() else None

    def about(self, name: str) -> dict[str, Any]:
        """Return the beginning of a study's last report, its number of finished stages, whether a new one is being
        made, and why the last attempt failed."""
        with self._lock:
            made = self._made.get(name)
            return {
                "begun": made.began.isoformat(timespec="seconds") if made else None,
                "finished": len(made.finished) if made else None,
                "in_work": self._in_work == name,
                "problem": self._problems.get(name, ""),
            }

    def close(self) -> None:
        """Kill the child process, if there is one, and remove all reports."""
        with self._lock:
            self._not_before = float("inf")
            child = self._child
        if child is not None:
            child.kill()
        self._place.cleanup()

    def _make(self, name: str, finished: frozenset[str]) -> None:
        began, start = datetime.now(UTC), time.monotonic()
        folder = None
        try:
            folder = Path(mkdtemp(dir=self._place.name))
            problem = self._run({"url": self._url, "name": name, "folder": str(folder), "nice": NICE})
        except OSError as error:  # no disk, memory or file descriptor is left
            problem = first_line(error)
        end = time.monotonic()
        with self._lock:
            spare = folder if problem else before.folder if (before := self._made.get(name)) else None
            if folder and not problem:
                self._made[name] = _Made(folder, began, finished)
            self._problems[name] = problem
            self._in_work, self._child = "", None
            self._not_before = max(start + EVERY_S, end + REST * (end - start), self._not_before)
            if spare:
                shutil.rmtree(spare, ignore_errors=True)

    def _run(self, asked: dict[str, Any]) -> str:
        """Run the child. Return the sentence about its failure; empty if it succeeded."""
        with subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child:
            with self._lock:
                self._child = child
            try:
                _, said = child.communicate(json.dumps(asked), timeout=LIMIT_S)  # a URL may hold a secret: no argument
            except subprocess.TimeoutExpired:
                child.kill()
                return f"it was not finished within {LIMIT_S:g} s"
        if not child.returncode:
            return ""
        return said.strip().rpartition("\n")[2] or f"its process ended with exit code {child.returncode}"


def write(url: str, name: str, folder: Path) -> None:
    """Write the report of a study's finished stages into a local folder. Raises StoreError if none can be read."""
    from rayexp.reports import page  # pandas and matplotlib, which only the child needs
    from rayexp.store.artifacts import Store, StoreError
    from rayexp.store.index import StoreIndex
    from rayexp.sweep.plan import Plan
    from rayexp.sweep.study import Study

    store = Store(url)
    about = StoreIndex(store).about(name)
    study = Study(store, name, about.get("study", name), about.get("scale", ""))
    whole = study.whole(Plan.of(study.study, (), ()), about["stages"])
    if not whole.finished:
        raise StoreError(
            f"study={name!r} has no finished stage that can be read without your own code; write the report with "
            "`rayexp report` where that code is"
        )
    page.write(whole, store, folder)


def main() -> None:
    """Write the report that is requested on standard input; exit with a sentence if that fails."""
    asked = json.load(sys.stdin)
    os.nice(asked["nice"])
    from rayexp.errors import RayexpError, sentence  # after nice: it imports what takes time

    try:
        write(asked["url"], asked["name"], Path(asked["folder"]))
    except (RayexpError, ValueError, OSError) as error:
        sys.exit(sentence(error))


if __name__ == "__main__":
    main()
