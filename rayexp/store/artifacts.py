"""Artifacts and results at any fsspec URL: ``file:``, ``s3:``, ``gs:``, ...

An artifact is a self-contained folder. Its ``manifest.json`` lists every file with size and SHA-256, and is written
last: an artifact is finished when it has one. A folder without one is an interrupted attempt and is overwritten.
Nothing read from a store can run code: JSON, Parquet, safetensors, and tensors loaded as tensors only.

    stages/<id>/        spec.json provenance.json manifest.json, metrics.parquet or results.parquet, model/; trainer/
                        if the stage is a pretraining that another stage continues
    work/<id>/step-N/   the last two checkpoints of a running stage; removed when the stage is finished. Each has a
                        folder trainer/ with a file of each rank
    replaced/<id>/      artifacts that ``--force`` replaced, by time
    work/<id>/failure.json  why the last attempt failed
    leases/ drivers/    which driver computes what (rayexp.store.leases)
    summaries/ distrusted/  the columns of a list of stages (rayexp.store.summaries)
    studies/<name>/     plan.json (labels of its stages by id, and what makes it one study), results.parquet, report/
"""

import copy
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from rayexp.config import RunConfig, canonical_json, parse_record
from rayexp.errors import first_line
from rayexp.stages import Stage
from rayexp.store import parquet, summaries
from rayexp.store.filesystem import Files, StoreError, inside
from rayexp.store.leases import Lease
from rayexp.store.manifest import MANIFEST, DamagedError, files_of, mismatch, parse_manifest, sha256
from rayexp.training.context import ALONE, Ranks, of_each

log = logging.getLogger(__name__)

FAILURE = "failure.json"
CHECKPOINTS_KEPT = 2
#: Artifacts of which one file each is held in memory at the same time.
READ_TOGETHER = 128
#: Folder in which a study's report is written before it replaces the old one.
STAGED = "report.part"
_STEP = re.compile(r"step-(\d{9})")


class Store:
    """Artifacts and checkpoints below a root. A ``lease`` (its text) is checked before each write."""

    def __init__(self, url: str, lease: str = "", timeout_s: float = 600.0) -> None:
        self.files = Files(url, timeout_s)
        self.url = self.files.url
        self._lease = Lease.parse(lease) if lease else None
        self._kept: dict[str, dict[str, Any] | None] = {}

    @classmethod
    def of(cls, run_config: RunConfig) -> "Store":
        """Return the store of a run's configuration, with its lease and time limit."""
        return cls(run_config.store, run_config.lease, run_config.timeout_s)

    def snapshot(self, stage_ids: Collection[str]) -> "Store":
        """Return a view of the store that keeps the manifests of these stages as they are now, because a report needs
        each of them several times. A stage that is unfinished now stays so in the view."""
        view, found = copy.copy(self), self.manifests(stage_ids)
        view._kept = {stage_id: found.get(stage_id) for stage_id in stage_ids}
        return view

    def require_shared(self) -> None:
        """Raise NotSharedError, or LeaseLostError, unless this process sees what the driver of its lease wrote."""
        if self._lease is not None:
            self._lease.require_shared(self.files)

    # Artifacts

    def finished(self, stage_id: str) -> bool:
        """Return whether the artifact is complete."""
        return stage_id in self.manifests([stage_id])

    def finished_ids(self, among: Collection[str] | None = None) -> set[str]:
        """Return the ids of all finished stages, or of the finished ones ``among`` some ids."""
        return set(self.manifests(among))

    def manifests(self, among: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """Return the manifests of all finished stages, or of the finished ones ``among`` some ids, by id.

        All are read together after one listing. ``files`` of each maps names to ``bytes`` and ``sha256``. Only names
        and ``sha256`` are validated: anybody with write access may have put anything into the other fields.
        """
        names = self.files.names("stages") if among is None else among
        paths = {f"stages/{name}/{MANIFEST}": name for name in names if name not in self._kept}
        found = self.files.read_existing(list(paths))
        manifests = self._kept | {paths[path]: parse_manifest(data) for path, data in found.items()}
        return {name: manifest for name in names if (manifest := manifests.get(name)) is not None}

    def publish(self, stage: Stage, folder: Path, provenance: dict[str, Any]) -> None:
        """Make ``folder`` the artifact of ``stage``, then drop the stage's checkpoints."""
        if not self.finished(stage.id):  # a process that was taken for dead may have published it
            (folder / "spec.json").write_text(stage.model_dump_json(indent=1), encoding="utf-8")
            (folder / "provenance.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")
            versions = [each.version for each in stage.lineage]
            self._put(folder, f"stages/{stage.id}", {"id": stage.id, "label": stage.label, "versions": versions})
        self.files.remove(f"work/{stage.id}")

    def tidy(self) -> None:
        """Remove the work folders of finished stages whose process died before it could remove them.

        A folder with a failure stays. A trial is named after its first stage, so the failure belongs to a later stage.
        """
        for stage_id in self.finished_ids(self.files.names("work")):
            if FAILURE not in self.files.names(f"work/{stage_id}"):
                self.files.remove(f"work/{stage_id}")

    def provenance(self, stage_id: str) -> dict[str, Any]:
        """Return the verified provenance of an artifact. Raises StoreError if it is no JSON object."""
        ((_, record),) = self.provenances([stage_id])
        if record is None:
            raise StoreError(
                f"{self.url}/stages/{stage_id}/provenance.json is not a JSON object; --force {stage_id} makes the "
                "stage again"
            )
        return record

    def provenances(self, stage_ids: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield each stage's id with the verified provenance of its artifact; None if that is no JSON object."""
        for stage_id, data in self._verified(stage_ids, "provenance.json"):
            yield stage_id, None if data is None else parse_record(data)

    def damaged(self, stage_ids: Iterable[str]) -> dict[str, list[str]]:
        """Verify every file of the given stages. Return the problems found, by stage id."""
        found: dict[str, list[str]] = {}
        for stage_id in stage_ids:
            for name, expected in (self._manifest(f"stages/{stage_id}") or {}).items():
                with TemporaryDirectory() as local:
                    problem = self._download(f"stages/{stage_id}", name, expected, Path(local))
                if problem:
                    found.setdefault(stage_id, []).append(f"{self.url}/stages/{stage_id}/{name}: {problem}")
        return found

    def unpublish(self, stage_id: str) -> None:
        """Remove an artifact, its manifest first."""
        summaries.distrust(self.files, stage_id)
        self.files.remove_file(f"stages/{stage_id}/{MANIFEST}")
        self.files.remove(f"stages/{stage_id}")

    def set_aside(self, stage_id: str) -> str | None:
        """Move an artifact out of the way and drop the stage's checkpoints. Return its new URL, if there was one.

        On a store that can't move folders it is copied; raises DamagedError if the copy would not be whole.
        """
        place = f"replaced/{stage_id}/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}"
        path, finished = f"stages/{stage_id}", self.finished(stage_id)
        if finished and self.files.local:
            summaries.distrust(self.files, stage_id)
            self.files.move_folder(path, place)
        elif finished:
            with self.fetched(path) as folder:
                self.put_folder(folder, place)
            self.files.write(f"{place}/{MANIFEST}", self.files.read(f"{path}/{MANIFEST}"))
            self.unpublish(stage_id)
        self.files.remove(f"work/{stage_id}")
        return f"{self.url}/{place}" if finished else None

    def table(self, stage_id: str, name: str) -> pa.Table:
        """Read a Parquet file of an artifact, verified against its manifest."""
        ((_, table),) = self.tables([stage_id], name)
        return table

    def tables(self, stage_ids: Iterable[str], name: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield each stage's id with the Parquet file of this name in its artifact, in order.

        Each file is verified against its manifest. Raises StoreError if it is not a table.
        """
        for stage_id, data in self._verified(stage_ids, name):
            place = f"{self.url}/stages/{stage_id}/{name}"
            if data is None:
                raise StoreError(f"{place} is not a table (its manifest has no such file)")
            yield stage_id, parquet.table(data, place).replace_schema_metadata(None)  # pandas would obey it

    @contextmanager
    def model(self, stage_id: str) -> Iterator[Path]:
        """Give a verified local copy of the ``model`` folder of an artifact for the duration of the block."""
        with self.fetched(f"stages/{stage_id}", prefix="model/") as folder:
            yield folder / "model"

    # Checkpoints

    def save_checkpoint(self, stage_id: str, step: int, folder: Path, ranks: Ranks = ALONE) -> None:
        """Publish ``folder`` as the stage's checkpoint at ``step``, and remove all but the newest ``CHECKPOINTS_KEPT``.

        With several ranks, the checkpoint has the files of all ranks' folders.
        """
        self._put(folder, f"work/{stage_id}/step-{step:09d}", {"id": stage_id, "step": step}, ranks)
        if ranks.rank == 0:
            for old in self._checkpoint_steps(stage_id)[:-CHECKPOINTS_KEPT]:
                self.files.remove(f"work/{stage_id}/step-{old:09d}")

    @contextmanager
    def latest_checkpoint(self, stage_id: str, ranks: Ranks = ALONE) -> Iterator[Path | None]:
        """Give the newest intact checkpoint as a local folder, or None. Skip torn and damaged ones.

        All ranks get the same checkpoint.
        """
        for step in reversed(ranks.gather(self._checkpoint_steps(stage_id))[0]):
            with ExitStack() as stack:
                try:
                    folder = stack.enter_context(self.fetched(f"work/{stage_id}/step-{step:09d}", ranks=ranks))
                except DamagedError as error:
                    log.warning("skipping a checkpoint: %s", error)
                    continue
                yield folder
                return
        yield None

    # Other files of a running stage

    def work_names(self, stage_id: str, folder: str) -> list[str]:
        """Return the names in a folder of the stage's work, in order."""
        return self.files.names(f"work/{stage_id}/{folder}")

    def work(self, stage_id: str, name: str) -> bytes:
        """Read a file of the stage's work."""
        return self.files.read(f"work/{stage_id}/{name}")

    def save_work(self, stage_id: str, name: str, data: bytes) -> None:
        """Write a file of the stage's work, if the lease on it is still held."""
        self._require_lease()
        self.files.write(f"work/{stage_id}/{name}", data)

    def remove_work(self, stage_id: str, name: str) -> None:
        """Remove a file of the stage's work, if the lease on it is still held."""
        self._require_lease()
        self.files.remove_file(f"work/{stage_id}/{name}")

    def _checkpoint_steps(self, stage_id: str) -> list[int]:
        names = self.files.names(f"work/{stage_id}")
        return sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))

    # Folders

    @contextmanager
    def fetched(self, path: str, prefix: str = "", ranks: Ranks = ALONE) -> Iterator[Path]:
        """Give a verified local copy of the files of a published folder whose names start with ``prefix``.

        With several ranks, the first rank of each machine fetches the files for all ranks of that machine.
        """
        first = ranks.gather(ranks.node).index(ranks.node)
        with TemporaryDirectory() as local:

            def fetch() -> str:
                if ranks.rank == first:
                    self._fetch(path, prefix, Path(local))
                return local

            yield Path(of_each(ranks, fetch)[first])
            ranks.gather(None)  # wait, so that no rank removes files that another rank still reads

    def put_folder(self, local: Path, path: str) -> None:
        """Copy every file of a local folder, and overwrite existing files."""
        for file in sorted(local.rglob("*")):
            if file.is_file():
                self.files.upload(file, f"{path}/{file.relative_to(local).as_posix()}")

    def write_study(self, name: str, file: str, data: bytes) -> None:
        """Write one file of a study, if the lease on it is still held."""
        self._require_lease()
        self.files.write(f"studies/{name}/{file}", data)

    def write_summaries(self, name: str, found: Iterable[summaries.StageSummary]) -> None:
        """Write the summaries of a study's stages, if the lease on it is still held."""
        self._require_lease()
        self.files.write(summaries.path(name), summaries.packed(found))

    def replace_study(self, local: Path, name: str) -> None:
        """Replace a study's tables and ``report`` by those of a local folder, if the lease on it is still held.

        The report is replaced as a whole: a reader never sees figures of two reports, and no file of the old one stays.
        For a moment there may be no report.
        """
        path = f"studies/{name}"
        self._require_lease()
        for file in sorted(local.iterdir()):
            if file.is_file():
                self.files.upload(file, f"{path}/{file.name}")
        if self.files.local:
            self.files.remove(f"{path}/{STAGED}")
            self.put_folder(local / "report", f"{path}/{STAGED}")
            self._require_lease()
            self.files.move_folder(f"{path}/{STAGED}", f"{path}/report")
        else:
            self._replace_objects(local / "report", f"{path}/report", last="index.html")

    def _replace_objects(self, local: Path, path: str, last: str) -> None:
        """Replace a folder on a store that can't move one. Remove ``last``, which links to all others, first; write it
        last."""
        self.files.remove_file(f"{path}/{last}")
        files = sorted(local.iterdir(), key=lambda file: (file.name == last, file.name))
        for name in set(self.files.names(path)) - {file.name for file in files}:
            self.files.remove_file(f"{path}/{name}")
        for file in files:
            self.files.upload(file, f"{path}/{file.name}")

    def _put(self, folder: Path, path: str, about: dict[str, Any], ranks: Ranks = ALONE) -> None:
        """Publish a folder, or the folders of several ranks as one. Its manifest appears last."""
        # A local folder is staged and then moved, so it appears whole and two writers can't mix their files.
        staged = f"work/{about['id']}/staged-{ranks.gather(secrets.token_hex(4))[0]}" if self.files.local else path

        def put() -> dict[str, dict[str, Any]]:
            self._require_lease()
            self.put_folder(folder, staged)
            return files_of(folder)

        listed = {name: file for part in of_each(ranks, put) for name, file in part.items()}
        if ranks.rank:
            return
        self._require_lease()
        self.files.write(f"{staged}/{MANIFEST}", canonical_json({**about, "files": listed}).encode())
        if self.files.local:
            self._require_lease()
            self.files.move_folder(staged, path)

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require_held(self.files)

    def _fetch(self, path: str, prefix: str, local: Path) -> None:
        manifest = self._manifest(path)
        if manifest is None:
            raise DamagedError.unfinished(f"{self.url}/{path}")
        for name, expected in manifest.items():
            if name.startswith(prefix):
                problem = self._download(path, name, expected, local)
                if problem:
                    raise DamagedError.differs(f"{self.url}/{path}/{name}", problem)

    def _verified(self, stage_ids: Iterable[str], name: str) -> Iterator[tuple[str, bytes | None]]:
        """Yield each stage's id with the content of a small file of its artifact; None if it has no such file.

        Manifests and files are read many at a time, so that a report on a thousand stages does not wait for each.
        Raises DamagedError as ``fetched`` does.
        """
        ids = list(stage_ids)
        for first in range(0, len(ids), READ_TOGETHER):
            some = ids[first : first + READ_TOGETHER]
            manifests = self.manifests(some)
            paths = {stage_id: f"stages/{stage_id}/{inside(name)}" for stage_id in some}
            there = self.files.read_existing(list(paths.values()))
            for stage_id, path in paths.items():
                if stage_id not in manifests:
                    raise DamagedError.unfinished(f"{self.url}/stages/{stage_id}")
                expected, data = manifests[stage_id]["files"].get(name), there.get(path)
                if expected is None:
                    yield stage_id, None
                    continue
                found = None if data is None else hashlib.sha256(data).hexdigest()
                if problem := mismatch(found, expected["sha256"]):
                    raise DamagedError.differs(f"{self.url}/{path}", problem)
                yield stage_id, data

    def _download(self, path: str, name: str, expected: dict[str, Any], local: Path) -> str | None:
        """Fetch a file. Return the problem with it, if there is one."""
        target = local / inside(name)
        try:
            self.files.download(f"{path}/{name}", target)
            found = sha256(target)
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
            found = None
        except (OSError, RecursionError) as error:  # a name that is too long, or in too many folders
            raise StoreError(
                f"{self.url}/{path}/{name} cannot be copied to this machine ({first_line(error)})"
            ) from error
        return mismatch(found, expected["sha256"])

    def _manifest(self, path: str) -> dict[str, dict[str, Any]] | None:
        """Return the files that a folder's manifest lists, by name; None if there is no manifest or a torn one."""
        try:
            manifest = parse_manifest(self.files.read(f"{path}/{MANIFEST}"))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return manifest and manifest["files"]
