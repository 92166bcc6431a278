"""``rayexp export``: publish a study as a release kit or on the Hugging Face hub."""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro
from rich import filesize

from rayexp.cli.command import working
from rayexp.cli.place import StoreArgs


@dataclass(frozen=True, kw_only=True)
class Export(StoreArgs):
    """Write a study into a folder to publish (a release kit): finished stages, results, report, records, checksums.
    With --to hf://ORG/NAME, publish on the Hugging Face hub: results as a data set, the decoders of --models as
    models."""

    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
    """Name of the study, which is its folder below studies/ in the store."""
    to: str
    """A new or empty folder, an fsspec URL, or hf://ORG/NAME."""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STAGE ...")] = ()
    """Decoders to publish on the hub, each as a model ORG/NAME-...: ids, prefixes of ids, or labels of finished
    stages. By default none, because a study may have hundreds."""
    dry_run: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A new or empty folder: write there what would be uploaded to the hub, and upload nothing."""

    def run(self) -> int:
        if self.to.startswith("hf://"):
            return self._publish()
        if self.models or self.dry_run is not None:
            given = "models" if self.models else "dry_run"
            raise ValueError(f"{given} needs to='hf://ORG/NAME', not {self.to!r}")
        return self._release()

    def _release(self) -> int:
        from rayexp.store.export import SUMS, Release

        release = Release(self.index(), self.study, self.to)
        with working():
            release.write(version("rayexp"), _say)
        size = filesize.decimal(release.bytes)
        print(f"wrote {len(release.sums) + 1} files ({size}) to {release.files.url}; checksums are in {SUMS}")
        return 0

    def _publish(self) -> int:
        from rayexp.reports import hub  # pandas and scipy, which a kit does not need

        publication = hub.Publication(self.index(), self.study, self.to, self.models)
        if self.dry_run is not None:
            folder = hub.empty_folder(self.dry_run)
            with working():
                publication.write(folder, version("rayexp"), _say)
            places = [str(folder / repository) for repository in publication.repositories]
        else:
            hub.require_access()
            with working(), TemporaryDirectory() as local:
                publication.write(Path(local), version("rayexp"), _say)
                places = publication.upload(Path(local), _say)
        print(*places, sep="\n")
        return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
