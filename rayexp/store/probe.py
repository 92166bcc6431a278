"""Trials of all operations that a sweep needs of its store, before it starts and not after hours of training."""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from rayexp.errors import first_line
from rayexp.store.filesystem import Files, StoreError
from rayexp.store.leases import SHARED

#: Filesystems that can't be shared, anywhere in a chain of URLs.
UNSEEN: dict[type, str] = {
    MemoryFileSystem: "is the memory of one process",
    CachingFileSystem: "keeps copies of its own and does not show what others wrote since",
}

#: A function that tries an operation in a folder of its own, and returns whether the store supports it.
Trial = Callable[[Files, str], bool]


def require_writable(files: Files) -> None:
    """Raise StoreError, naming the missing operation, unless files can be written, replaced, listed and removed."""
    _require(files, WRITING)


def require_shareable(files: Files) -> None:
    """Raise StoreError, naming the missing operation, unless the store supports all that concurrent sweeps need."""
    _require(files, WRITING | SHARING)


def require_seen_by_others(files: Files) -> None:
    """Raise StoreError if other processes would not see this process's writes, or might see an older copy."""
    layer: Any = files.fs
    while layer is not None:
        for kind, why in UNSEEN.items():
            if isinstance(layer, kind):
                raise StoreError(f"store={files.url!r} {why}; {SHARED}")
        layer = getattr(layer, "fs", None)  # the next filesystem in a chain of URLs


def _require(files: Files, trials: Mapping[str, Trial]) -> None:
    folder = f".probe-{secrets.token_hex(4)}"
    try:
        for failing, works in trials.items():
            try:
                fine, why = works(files, folder), ""
            except (StoreError, OSError) as error:
                fine, why = False, f": {first_line(error)}"
            if not fine:
                raise StoreError(f"store={files.url!r} {failing}{why}; use another folder or bucket")
    finally:
        with suppress(StoreError, OSError):
            files.remove(folder)


def _reads_back(files: Files, name: str, data: bytes) -> bool:
    files.write(name, data)
    return files.read(name) == data


def _lists(files: Files, folder: str) -> bool:
    files.write(f"{folder}/other", b"")
    return files.names(folder) == ["file", "other"]


def _removes(files: Files, folder: str) -> bool:
    files.remove_file(f"{folder}/other")
    return files.names(folder) == ["file"]


def _creates_once(files: Files, folder: str) -> bool:
    name = f"{folder}/created"
    return files.create(name, b"one") and not files.create(name, b"two") and files.read(name) == b"one"


def _publishes(files: Files, folder: str) -> bool:
    """Publish a folder in the way of ``Store``: on a local store, rename it over an existing one."""
    for content in (b"one", b"two") if files.local else ():
        files.write(f"{folder}/staged/deep/file", content)
        files.move_folder(f"{folder}/staged", f"{folder}/published")
    return not files.local or files.read(f"{folder}/published/deep/file") == b"two"


def _removes_folder(files: Files, folder: str) -> bool:
    files.remove(folder)
    return files.names(folder) == []


WRITING: dict[str, Trial] = {
    "cannot be written": lambda files, folder: _reads_back(files, f"{folder}/file", b"one"),
    "does not replace a file, or shows the old one for a while": lambda files, folder: _reads_back(
        files, f"{folder}/file", b"two"
    ),
    "does not list a file as soon as it is written": _lists,
    "does not remove a file, or shows it for a while": _removes,
}
SHARING: dict[str, Trial] = {
    "does not support exclusive creation of a file (O_EXCL or If-None-Match), without which two sweeps would run the "
    "same stage": _creates_once,
    "does not report when a file was written": lambda files, folder: files.modified(f"{folder}/file").timestamp() > 0,
    "does not rename a folder": _publishes,
    "does not remove a folder": _removes_folder,
}
