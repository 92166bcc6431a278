"""The trackers that a sweep can write to beside the store: files, TensorBoard, Weights & Biases.

Off unless asked for: the store has everything already. What they write lies in a folder of Ray's while the sweep runs,
and in the store, below the study, when it has ended in whatever way.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from rayexp.errors import not_among
from rayexp.store.artifacts import Store

NAMES = ("csv", "json", "tensorboard", "wandb")


@dataclass
class Trackers:
    """The trackers of a sweep, and the folders that they have written to, one for each trial that was started.
    ``afterwards``: where their files are when the sweep has ended."""

    names: Sequence[str] = ()
    study: str = ""
    afterwards: str = ""
    folders: dict[Path, None] = field(default_factory=dict)

    def add_folder(self, folder: Path) -> None:
        """Remember the folder of a trial; print, once, where they are."""
        if self.names and not self.folders:
            print(f"loggers: {folder.parent}, and after the sweep {self.afterwards}", flush=True)
        self.folders[folder] = None


def require(names: Sequence[str]) -> None:
    """Raise ValueError, in one sentence, if one of the trackers does not exist, lacks its package or can't log in."""
    for name in names:
        if name not in NAMES:
            raise ValueError(not_among("loggers", name, NAMES))
    if "wandb" in names:
        if find_spec("wandb") is None:
            raise ValueError("loggers is 'wandb', which needs a package: pip install 'rayexp[wandb]'")
        if not _can_log_in():
            raise ValueError(
                "loggers is 'wandb', which has no API key; allowed: WANDB_API_KEY set, `wandb login` done, or "
                "WANDB_MODE=offline"
            )


def _can_log_in() -> bool:
    """Return whether Ray's callback of Weights & Biases will find an API key, or needs none."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_SETUP_API_KEY_HOOK"):
        return True
    import wandb  # takes a second

    return wandb.login(prompt=False, verify=False)


@contextmanager
def opened(names: Sequence[str], store: Store, study: str) -> Iterator[Trackers]:
    """Give the trackers for one sweep; put their files to ``studies/<study>/loggers/<now>`` when the block ends."""
    folder = f"studies/{study}/loggers/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    trackers = Trackers(names, study, f"{store.url}/{folder}")
    try:
        yield trackers
    finally:
        if names:
            with TemporaryDirectory() as name:
                for source in trackers.folders:
                    ignored = shutil.ignore_patterns("*.pkl", "latest-run")
                    shutil.copytree(source, Path(name) / source.name, ignore=ignored)
                store.put_folder(Path(name), folder)
