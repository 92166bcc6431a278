"""MLflow, Trackio and Weights & Biases, behind the same four calls: start a run, log numbers, write texts, end it.

Each client imports its package when it is made. Every call may raise whatever that package raises.
"""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

#: The project of W&B and Trackio, and the experiment of MLflow.
PROJECT = "rayexp"
#: Limits of MLflow for one request, and for one name.
MLFLOW_PARAMS, MLFLOW_NAME = 100, 250
#: Characters that MLflow refuses in names.
NOT_MLFLOW = re.compile(r"[^/\w.\- :]")


class TrackerClient(Protocol):
    """A tracker. place: where its runs can be looked at."""

    place: str

    def start(self, name: str, params: Mapping[str, Any]) -> Any:
        """Begin a run of the study. Return the handle by which the other calls name it."""

    def log(self, run: Any, step: int, numbers: Mapping[str, float]) -> None:
        """Add numbers to the curves of a run; the last ones of each name are its summary."""

    def write(self, run: Any, texts: Mapping[str, str]) -> None:
        """Add texts to the summary of a run."""

    def end(self, run: Any, done: bool) -> None:
        """End a run, as failed unless ``done``."""


class MLflow:
    """Runs of MLflow, with the study as the tag ``study``: on the server of MLFLOW_TRACKING_URI, else in a file."""

    def __init__(self, study: str, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # takes seconds

        self.place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self._study = study
        self._client = MlflowClient(self.place)
        found = self._client.get_experiment_by_name(PROJECT)
        self._experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)

    def start(self, name: str, params: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment, run_name=name, tags={"study": self._study}).info.run_id
        rows = [Param(_mlflow_name(key), str(value)) for key, value in params.items()]
        for first in range(0, len(rows), MLFLOW_PARAMS):
            self._client.log_batch(run, params=rows[first : first + MLFLOW_PARAMS])
        return run

    def log(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        rows = [Metric(_mlflow_name(key), value, now_ms, step) for key, value in numbers.items()]
        self._client.log_batch(run, metrics=rows)

    def write(self, run: str, texts: Mapping[str, str]) -> None:
        for key, text in texts.items():
            self._client.set_tag(run, _mlflow_name(key), text)

    def end(self, run: str, done: bool) -> None:
        self._client.set_terminated(run, "FINISHED" if done else "FAILED")


def _mlflow_name(name: str) -> str:
    return NOT_MLFLOW.sub("_", name)[:MLFLOW_NAME]


class Wandb:
    """Runs of Weights & Biases, with the study as their group."""

    def __init__(self, study: str, folder: Path) -> None:
        import wandb  # takes a second

        self._mode: Any = os.environ.get("WANDB_MODE", "online")
        self.place = f"project {PROJECT}, group {study}" if self._mode == "online" else f"{self._mode}, {folder}/wandb"
        self._wandb = wandb
        self._study = study
        self._folder = folder

    def start(self, name: str, params: Mapping[str, Any]) -> Any:
        return self._wandb.init(
            project=PROJECT,
            group=self._study,
            name=name,
            config=dict(params),
            dir=str(self._folder),
            mode=self._mode,  # which wandb itself reads but once in a process
            reinit="create_new",  # several at a time
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def log(self, run: Any, step: int, numbers: Mapping[str, float]) -> None:
        run.log(dict(numbers), step=step)

    def write(self, run: Any, texts: Mapping[str, str]) -> None:
        run.summary.update(dict(texts))

    def end(self, run: Any, done: bool) -> None:
        run.finish(exit_code=0 if done else 1)


class Trackio:
    """Runs of Trackio, with the study as their group, in the folder or on the server that Trackio's own variables
    name."""

    def __init__(self, study: str, folder: Path) -> None:
        import trackio  # takes a second
        from trackio import context_vars, utils

        url = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL", "").partition("?")[0]
        self.place = url or str(utils.TRACKIO_DIR)
        self._trackio = trackio
        self._current_run = context_vars.current_run
        self._study = study

    def start(self, name: str, params: Mapping[str, Any]) -> Any:
        run = self._trackio.init(
            project=PROJECT,
            group=self._study,
            name=name,
            config=dict(params),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self._current_run.set(None)  # else the next one that is started would end it
        return run

    def log(self, run: Any, step: int, numbers: Mapping[str, float]) -> None:
        run.log(dict(numbers), step=step)

    def write(self, run: Any, texts: Mapping[str, str]) -> None:
        """Add a table, because Trackio's summaries hold only numbers."""
        run.log({"summary": self._trackio.Table(columns=["name", "text"], data=[list(row) for row in texts.items()])})

    def end(self, run: Any, done: bool) -> None:
        run.finish()


CLIENTS = {"mlflow": MLflow, "trackio": Trackio, "wandb": Wandb}
