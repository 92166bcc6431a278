"""The manifest of a published folder: its files, each with size and SHA-256, and the check of a file against it."""

import hashlib
import re
from pathlib import Path
from typing import Any

from rayexp.config import parse_record
from rayexp.store.filesystem import StoreError

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedError(StoreError):
    """A published folder that differs from its manifest, or has no manifest."""

    @classmethod
    def unfinished(cls, place: str) -> "DamagedError":
        """Return the error for a folder without a manifest."""
        return cls(f"{place} is not finished: it has no manifest; run the study again to finish it")

    @classmethod
    def differs(cls, place: str, problem: str) -> "DamagedError":
        """Return the error for a file that differs from its manifest."""
        return cls(f"{place} is damaged: {problem}; --repair rebuilds it")


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a manifest lists for a folder: the files by name, each with ``bytes`` and ``sha256``."""
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def parse_manifest(data: bytes) -> dict[str, Any] | None:
    """Return a manifest; None if it is torn or invalid. Validate names and checksums, because messages show them."""
    manifest = parse_record(data) or {}
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(name.isprintable() for name in files):
        return None
    sums = [about.get("sha256") if isinstance(about, dict) else None for about in files.values()]
    return manifest if all(isinstance(text, str) and _SHA256.fullmatch(text) for text in sums) else None


def mismatch(found: str | None, expected: str) -> str | None:
    """Return the problem with a file whose SHA-256 is ``found`` (None: a missing file); None if there is no problem."""
    if found is None:
        return "it is not there"
    return None if found == expected else f"its SHA-256 is {found}, not {expected}"


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
