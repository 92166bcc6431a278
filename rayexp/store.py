"""Artifacts and results at any fsspec URL: ``file:``, ``s3:``, ``gs:``, ...

An artifact is a folder that says everything about itself, and it is finished when its ``manifest.json`` is there, which
is written last and lists every file with size and SHA-256. A folder without one is an interrupted attempt and is
written over. Nothing read from a store can run code: JSON, Parquet, safetensors, and tensors loaded as tensors only.

    stages/<id>/        spec.json provenance.json manifest.json, metrics.parquet or results.parquet, model/
    work/<id>/step-N/   checkpoints of a running stage, the last two; removed when the stage is finished
    studies/<name>/     plan.json, results.parquet, report/
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from rayexp.spec import Stage, canonical_json, parse_stage

MANIFEST = "manifest.json"
CHECKPOINTS_KEPT = 2
_STEP = re.compile(r"step-(\d{9})")


class StoreError(RuntimeError):
    """The store can't be used, or holds something that is not what its manifest says."""


class Store:
    """A root folder on an fsspec filesystem."""

    def __init__(self, url: str) -> None:
        try:
            # Other machines write here too: a cached listing would be a lie.
            fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise StoreError(f"store is {url!r}; allowed: a folder or an fsspec URL ({error})") from error
        self.url = url
        self.fs = cast(fsspec.AbstractFileSystem, fs)
        self.root = str(root).rstrip("/")

    @property
    def local(self) -> bool:
        """Whether the store is a folder of this machine's file system."""
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    @property
    def arrow(self) -> pyarrow.fs.FileSystem | None:
        """The filesystem as Ray takes it; None for local disk, where a plain path does."""
        return None if self.local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    def require_writable(self) -> None:
        """Raise StoreError unless a file can be written, read back and removed."""
        probe = f"{self.root}/.write-probe"
        try:
            self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(probe, b"ok")
            if self.fs.cat_file(probe) != b"ok":
                raise OSError("a file came back different")
            self.fs.rm_file(probe)
        except Exception as error:
            raise StoreError(
                f"store is {self.url!r}, which cannot be written: {error or type(error).__name__}"
            ) from error

    # Artifacts

    def finished(self, stage_id: str) -> bool:
        """Whether the artifact is complete."""
        return self._manifest(f"stages/{stage_id}") is not None

    def finished_ids(self) -> set[str]:
        """Ids of all finished stages: one listing, and the manifests read together."""
        paths = [str(path) for path in self.fs.glob(f"{self.root}/stages/*/{MANIFEST}")]
        manifests = cast(dict[str, bytes], self.fs.cat(paths, on_error="omit") if paths else {})
        return {PurePosixPath(path).parent.name for path, data in manifests.items() if _parsed(data) is not None}

    def publish(self, stage: Stage, folder: Path, provenance: dict[str, Any]) -> None:
        """Make ``folder`` the artifact of ``stage``, then drop the stage's checkpoints."""
        (folder / "spec.json").write_text(stage.model_dump_json(indent=1))
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=1))
        self._put(folder, f"stages/{stage.id}", {"id": stage.id, "label": stage.label})
        self.remove(f"work/{stage.id}")

    def spec(self, stage_id: str) -> Stage:
        """The value that an artifact was made from. Raises StoreError if it does not hash to its id."""
        stage = parse_stage(self.read(f"stages/{stage_id}/spec.json"))
        if stage.id != stage_id:
            raise StoreError(f"stages/{stage_id}/spec.json holds the stage {stage.id}")
        return stage

    def table(self, stage_id: str, name: str) -> pa.Table:
        """A Parquet file of an artifact, verified against its manifest."""
        with self.fetched(f"stages/{stage_id}", prefix=name) as folder:
            return pq.read_table(folder / name)

    @contextmanager
    def model(self, stage_id: str) -> Iterator[Path]:
        """The ``model`` folder of an artifact as a local folder, verified, for the time of the block."""
        with self.fetched(f"stages/{stage_id}", prefix="model/") as folder:
            yield folder / "model"

    # Checkpoints

    def save_checkpoint(self, stage_id: str, step: int, folder: Path) -> None:
        """Publish ``folder`` as the stage's checkpoint at ``step`` and remove the ones that are no longer needed."""
        self._put(folder, f"work/{stage_id}/step-{step:09d}", {"id": stage_id, "step": step})
        for old in self._checkpoint_steps(stage_id)[:-CHECKPOINTS_KEPT]:
            self.remove(f"work/{stage_id}/step-{old:09d}")

    @contextmanager
    def latest_checkpoint(self, stage_id: str) -> Iterator[Path | None]:
        """The newest good checkpoint as a local folder, or None; a torn or damaged one is passed over."""
        for step in reversed(self._checkpoint_steps(stage_id)):
            with TemporaryDirectory() as local:
                try:
                    self._fetch(f"work/{stage_id}/step-{step:09d}", "", Path(local))
                except (StoreError, FileNotFoundError):
                    continue
                yield Path(local)
                return
        yield None

    def _checkpoint_steps(self, stage_id: str) -> list[int]:
        try:
            names = [PurePosixPath(path).name for path in self.fs.ls(f"{self.root}/work/{stage_id}", detail=False)]
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))

    # Files

    def read(self, path: str) -> bytes:
        """One file, by its path below the root. Raises FileNotFoundError."""
        return cast(bytes, self.fs.cat_file(f"{self.root}/{_inside(path)}"))

    def write(self, path: str, data: bytes) -> None:
        """Write one file so that a reader sees either the old one or the new one."""
        target = f"{self.root}/{_inside(path)}"
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if self.local:
            self.fs.pipe_file(f"{target}.part", data)
            Path(f"{target}.part").replace(target)
        else:  # object stores show an object when its upload is complete
            self.fs.pipe_file(target, data)

    def files(self, path: str) -> list[tuple[str, bytes]]:
        """Name and content of every file directly in a folder, by name; none if there is no folder."""
        try:
            found = sorted(self.fs.ls(f"{self.root}/{_inside(path)}", detail=False))
        except FileNotFoundError:
            return []
        return [(PurePosixPath(name).name, cast(bytes, self.fs.cat_file(name))) for name in found]

    def remove(self, path: str) -> None:
        """Remove a folder if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/{_inside(path)}", recursive=True)

    def put_folder(self, local: Path, path: str) -> None:
        """Copy every file of a local folder, writing over what is there."""
        for file in sorted(local.rglob("*")):
            if file.is_file():
                self.write(f"{path}/{file.relative_to(local).as_posix()}", file.read_bytes())

    def _put(self, folder: Path, path: str, about: dict[str, Any]) -> None:
        files = {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        self.put_folder(folder, path)
        self.write(f"{path}/{MANIFEST}", canonical_json({**about, "files": files}).encode())

    def _manifest(self, path: str) -> dict[str, Any] | None:
        try:
            return _parsed(self.read(f"{path}/{MANIFEST}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def fetched(self, path: str, prefix: str = "") -> Iterator[Path]:
        """The files of a published folder whose names start with ``prefix``, local and verified."""
        with TemporaryDirectory() as local:
            self._fetch(path, prefix, Path(local))
            yield Path(local)

    def _fetch(self, path: str, prefix: str, local: Path) -> None:
        manifest = self._manifest(path)
        if manifest is None:
            raise StoreError(f"{self.url}/{path} is not finished: it has no manifest")
        for name, expected in manifest["files"].items():
            if not name.startswith(prefix):
                continue
            target = local / _inside(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.fs.open(f"{self.root}/{path}/{name}", "rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(cast(IO[bytes], source), sink)
            if _sha256(target) != expected["sha256"]:
                raise StoreError(f"{self.url}/{path}/{name} is damaged: its SHA-256 is not {expected['sha256']}")


def _parsed(data: bytes) -> dict[str, Any] | None:
    """A manifest, or None if it is torn."""
    try:
        manifest = json.loads(data)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def _inside(path: str) -> str:
    """Refuse names that would leave the store or a local folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise StoreError(f"{path!r} is not a name inside a store")
    return path


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
