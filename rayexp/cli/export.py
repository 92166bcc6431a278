"""``rayexp export``: the release kit of a study."""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

import tyro
from rich import filesize

from rayexp.cli.command import working
from rayexp.cli.place import StoreArgs


@dataclass(frozen=True, kw_only=True)
class Export(StoreArgs):
    """Write the release kit of a study: its finished stages, results and report, a table of records, checksums."""

    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
    """As it is called below studies/ in the store."""
    to: str
    """An empty or new folder, or an fsspec URL."""

    def run(self) -> int:
        from rayexp.store.export import SUMS, Release

        release = Release(self.index(), self.study, self.to)
        with working():
            release.write(version("rayexp"), lambda text: print(text, file=sys.stderr, flush=True))
        size = filesize.decimal(release.bytes)
        print(f"{len(release.sums) + 1} files, {size}: {release.files.url}, sealed with {SUMS}")
        return 0
