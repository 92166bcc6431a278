"""Tune's own loggers, for those who look at their runs in TensorBoard or Weights & Biases, or want files of their own.

Off unless asked for: the store has everything already. What they write lies in a folder of Ray's while the sweep runs,
and in the store, below the study, when it has ended in whatever way.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback

from rayexp.errors import not_among
from rayexp.store.artifacts import Store

#: Of a trial's settings, those that are whole documents; the store has them in its spec.json.
DOCUMENTS = ["stages", "execution"]


def _wandb(study: str) -> tune.Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback  # imports wandb, which takes a second

    class Started(WandbLoggerCallback):
        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            """End the run of a trial, unless its process never started and it has none."""
            if trial in self._trial_queues:
                super().log_trial_end(trial, failed)

    # Its runs live in actors, which may be started by a node that does not know this process's environment.
    mode = os.environ.get("WANDB_MODE", "online")
    return Started(project="rayexp", group=study, excludes=DOCUMENTS, mode=mode, settings={"silent": True})


LOGGERS: dict[str, Callable[[str], tune.Callback]] = {
    "csv": lambda study: CSVLoggerCallback(),
    "json": lambda study: JsonLoggerCallback(),
    "tensorboard": lambda study: TBXLoggerCallback(),
    "wandb": _wandb,
}


def require(names: Sequence[str]) -> None:
    """Raise ValueError, in one sentence, if one of the loggers does not exist, lacks its package or can't log in."""
    for name in names:
        if name not in LOGGERS:
            raise ValueError(not_among("loggers", name, LOGGERS))
    if "wandb" in names:
        if find_spec("wandb") is None:
            raise ValueError("loggers is 'wandb', which needs a package: pip install 'rayexp[wandb]'")
        try:
            LOGGERS["wandb"]("").setup()  # looks for an API key
        except ValueError as error:
            raise ValueError(
                "loggers is 'wandb', which has no API key; allowed: WANDB_API_KEY set, `wandb login` done, or "
                "WANDB_MODE=offline"
            ) from error


@contextmanager
def opened(names: Sequence[str], store: Store, study: str) -> Iterator[list[tune.Callback]]:
    """The loggers as Tune's callbacks; their files are put to ``studies/<study>/loggers/<now>`` when the block ends."""
    if not names:
        yield []
        return
    folder = f"studies/{study}/loggers/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    folders = _Folders(f"{store.url}/{folder}")
    try:
        yield [*(LOGGERS[name](study) for name in names), folders]
    finally:
        with TemporaryDirectory() as name:
            for source in folders.seen:
                shutil.copytree(source, Path(name) / source.name, ignore=shutil.ignore_patterns("*.pkl", "latest-run"))
            store.put_folder(Path(name), folder)


class _Folders(tune.Callback):
    """Remembers the folder of every trial, and says once where they are."""

    def __init__(self, afterwards: str) -> None:
        self.seen: dict[Path, None] = {}
        self._afterwards = afterwards

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        folder = Path(trial.local_path)
        if not self.seen:
            print(f"loggers: {folder.parent}, and after the sweep {self._afterwards}", flush=True)
        self.seen[folder] = None
