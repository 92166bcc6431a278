"""The trackers that a sweep can write to beside the store: MLflow, Trackio, Weights & Biases, TensorBoard, files.

They are off by default, because the store has everything already. The first three get a run for each stage
(``stage_runs``); the others are Tune's, with a run for each trial. Their files are in a folder of this machine while
the sweep runs, and are copied into the store, below the study, when it ends in whatever way.
"""

import logging
import os
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError

from rayexp.errors import first_line, not_among
from rayexp.stages import Stage
from rayexp.store.artifacts import Store, StoreError
from rayexp.sweep.plan import Plan, Trial
from rayexp.sweep.stage_runs import BackgroundWriter, Results, StageRuns
from rayexp.sweep.tracker_clients import CLIENTS

log = logging.getLogger(__name__)

#: Trackers whose files Tune writes.
TUNES = ("csv", "json", "tensorboard")
NAMES = tuple(sorted((*TUNES, *CLIENTS)))
REACHED_WITHIN_S = 10.0


def require(names: Sequence[str]) -> None:
    """Raise ValueError, in one sentence, if one of the trackers does not exist, lacks its package, can't be reached or
    can't log in."""
    for name in names:
        if name not in NAMES:
            raise ValueError(not_among("loggers", name, NAMES))
        if name in CLIENTS and find_spec(name) is None:
            raise ValueError(f"loggers={name!r} needs a package; run: pip install 'rayexp[{name}]'")
    if "mlflow" in names:
        _require_reached(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if "wandb" in names and not _can_log_in():
        raise ValueError(
            "loggers='wandb' has no API key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"
        )


def _require_reached(url: str) -> None:
    """Raise ValueError if nothing answers at the address of an MLflow server; MLflow itself would retry for minutes."""
    if not url.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(url, timeout=REACHED_WITHIN_S).close()
    except HTTPError:  # an answer
        pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no server answers at MLFLOW_TRACKING_URI={url!r} ({first_line(error)}); start one there, or unset it to "
            "have MLflow write to a file"
        ) from error


def _can_log_in() -> bool:
    """Return whether Weights & Biases will find an API key, or needs none."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or os.environ.get("WANDB_API_KEY"):
        return True
    import wandb  # takes a second

    return wandb.login(prompt=False, verify=False)


class Trackers:
    """The trackers of a study: those that Tune writes (``tunes``, in the ``folders`` of the trials that were started),
    and those that get a run for each stage."""

    def __init__(self, study: str = "", tunes: Sequence[str] = (), runs: Sequence[BackgroundWriter] = ()) -> None:
        self.tunes = tunes
        self.folders: dict[Path, None] = {}
        self._study = study
        self._runs = runs

    def add_folder(self, folder: Path) -> None:
        """Remember the folder of a trial, and print once where these folders are."""
        if self.tunes and not self.folders:
            print(f"loggers: {', '.join(self.tunes)}: {folder.parent}", flush=True)
        self.folders[folder] = None

    def log(self, stage: Stage, plan: Plan, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to the curves of a stage."""
        for each in self._runs:
            each.call(lambda runs: runs.log(stage, plan.labels[stage.id], step, numbers))

    def end_trial(self, trial: Trial, plan: Plan) -> None:
        """End the runs of a trial that is done, has failed, or was given up."""
        for each in self._runs:
            each.call(lambda runs: runs.end_trial(trial, plan))

    def write_study(self, verdicts: Mapping[str, str]) -> None:
        """Write the verdicts of the study, each under the claim and setting that it is about."""
        for each in self._runs:
            each.call(lambda runs: runs.write_study(self._study, verdicts))

    def close(self) -> None:
        """Wait until everything is written."""
        for each in self._runs:
            each.close()


@contextmanager
def opened(names: Sequence[str], store: Store, study: str, results: Results) -> Iterator[Trackers]:
    """Give the trackers of a study; copy their files to ``studies/<study>/loggers/<now>`` when the block ends.

    Raises ValueError, before the block begins, if a tracker can't be opened.
    """
    afterwards = f"studies/{study}/loggers/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    with TemporaryDirectory(prefix="rayexp-loggers-") as name:
        folder = Path(name)
        runs = [_open(each, study, folder, store, results) for each in names if each in CLIENTS]
        trackers = Trackers(study, [each for each in names if each in TUNES], runs)
        try:
            yield trackers
        finally:
            trackers.close()
            _keep(trackers, folder, store, afterwards)


def _open(name: str, study: str, folder: Path, store: Store, results: Results) -> BackgroundWriter:
    try:
        client = CLIENTS[name](study, folder)
    except Exception as error:
        raise ValueError(
            f"loggers={name!r} cannot be opened ({first_line(error)}); mend that, or leave it out"
        ) from error
    print(f"loggers: {name}: {client.place}", flush=True)
    return BackgroundWriter(name, StageRuns(client, store, results))


def _keep(trackers: Trackers, folder: Path, store: Store, path: str) -> None:
    """Copy the files of the trackers in ``folder``, and those of Tune, into the store; log a warning if that fails."""
    try:
        for source in trackers.folders if trackers.tunes else ():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("*.pkl"), dirs_exist_ok=True)
        store.put_folder(folder, path)
    except (OSError, StoreError) as error:
        log.warning("loggers: their files could not be copied into the store: %s", first_line(error))
    else:
        if any(folder.iterdir()):
            print(f"loggers: {store.url}/{path}", flush=True)
