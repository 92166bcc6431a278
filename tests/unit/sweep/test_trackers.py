"""Trackers: refused before anything starts, or given the expected data of each stage, however the sweep ends."""

import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rayexp import api
from rayexp.config import RunConfig
from rayexp.store.artifacts import Store
from rayexp.sweep import trackers
from rayexp.sweep.progress import Progress
from rayexp.sweep.scheduler import TuneEvents, tracker_callbacks
from rayexp.sweep.stage_runs import BackgroundWriter, StageRuns
from rayexp.sweep.trackers import Trackers
from tests.fixtures import local_sweep, tracked_sweep
from tests.fixtures.stored_study import STAGES, study
from tests.fixtures.tracked_sweep import CURVE, DONE, LOST, PLAN, RESULTS, STUDY, VERDICTS


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Keep trackers from the network, and from this machine's user settings."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


# Refusals


@pytest.mark.parametrize("names", [(), ("csv",), ("json", "tensorboard")])
def test_those_that_come_with_ray_can_be_had(names):
    trackers.require(names)
    assert len(tracker_callbacks(Trackers("demo", names))) == len(names)


def test_an_unknown_one_is_refused():
    with pytest.raises(
        ValueError, match="loggers='visdom' is not one of csv, json, mlflow, tensorboard, trackio, wandb"
    ):
        trackers.require(("csv", "visdom"))


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_one_without_its_package_is_refused_with_how_to_install_it(monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"loggers='{name}' needs a package; run: pip install 'rayexp\[{name}\]'"):
        trackers.require((name,))


def test_wandb_without_a_login_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no API key; set WANDB_API_KEY, run `wandb login`"):
        trackers.require(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.require(("wandb",))


def test_a_server_of_mlflow_that_does_not_answer_is_refused(monkeypatch):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # without listening
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"no server answers at MLFLOW_TRACKING_URI='http://127"):
            trackers.require(("mlflow",))


@pytest.mark.slow  # imports MLflow
def test_one_that_can_not_be_opened_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://place")
    with (
        pytest.raises(ValueError, match="loggers='mlflow' cannot be opened"),
        trackers.opened(("mlflow",), Store(str(tmp_path)), "demo", lambda measurement: {}),
    ):
        pass


@pytest.mark.slow
def test_none_is_imported_where_none_was_asked_for():
    program = "import sys, rayexp.cli, rayexp.sweep.scheduler; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"mlflow", "trackio", "wandb"} & set(done.stdout.split())


# The data that a user sees


@pytest.mark.slow
def test_mlflow_has_a_run_for_each_stage_and_one_for_the_study(tmp_path):
    from mlflow import MlflowClient

    (folder,) = tracked_sweep.sweep(tmp_path, "mlflow").iterdir()
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'rayexp'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {DONE.label, LOST.label, STUDY}
    assert {run.data.tags["study"] for run in runs.values()} == {STUDY}
    assert {name: run.info.status for name, run in runs.items() if name != STUDY} == {
        DONE.label: "FINISHED",
        LOST.label: "FAILED",
    }
    done = runs[DONE.label]
    assert done.data.params["stage_id"] == DONE.id
    assert done.data.params["grpo.kl_beta"] == "0.1"
    assert done.data.params["pretrain.decoder.layers"] == str(DONE.root.decoder.layers)
    curve = client.get_metric_history(done.info.run_id, "grpo/kl")
    assert {point.step: point.value for point in curve} == CURVE
    assert RESULTS.items() <= done.data.metrics.items()
    assert not RESULTS.keys() & runs[LOST.label].data.metrics.keys()
    assert "holds: gain 0.01" in runs[STUDY].data.tags.values()


@pytest.mark.slow
def test_wandb_has_a_run_for_each_stage_and_one_for_the_study(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (folder,) = tracked_sweep.sweep(tmp_path, "wandb").iterdir()
    runs = dict(read_wandb(file.read_bytes()) for file in folder.glob("wandb/offline-run-*/*.wandb"))
    assert set(runs) == {DONE.label, LOST.label, STUDY}
    assert {(run.project, run.group) for run in runs.values()} == {("rayexp", STUDY)}
    done, lost = runs[DONE.label], runs[LOST.label]
    assert (done.exit, lost.exit) == (0, 1)
    assert done.config.items() >= {"stage_id": DONE.id, "grpo.kl_beta": 0.1, "pretrain.ood_ratio": 0.0}.items()
    assert {step: numbers["grpo/kl"] for step, numbers in done.curves.items() if "grpo/kl" in numbers} == CURVE
    assert RESULTS.items() <= done.summary.items()
    assert done.summary["grpo/kl"] == CURVE[2]
    assert not RESULTS.keys() & lost.summary.keys()
    assert VERDICTS.items() <= runs[STUDY].summary.items()


def read_wandb(data):
    """Return the name of an offline run, and the content of its file."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    found = SimpleNamespace(config={}, curves={}, summary={}, exit=None)
    name = ""

    def values(items):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    for text in wandb_records(data):
        record = Record.FromString(text)
        match record.WhichOneof("record_type"):
            case "run":
                name, found.project, found.group = record.run.display_name, record.run.project, record.run.run_group
                found.config |= values(record.run.config.update)
            case "history":
                found.curves[record.history.step.num] = values(record.history.item)
            case "summary":
                found.summary |= values(record.summary.update)
            case "exit":
                found.exit = record.exit.exit_code
    return name, found


def wandb_records(data):
    """Yield the records of a W&B file. It is a LevelDB log: blocks of parts with checksum, length and kind."""
    at, parts, block, whole_or_last = 7, b"", 2**15, (1, 4)
    while at + 7 <= len(data):
        if (left := block - at % block) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in whole_or_last:
            yield parts
            parts = b""


@pytest.mark.slow
def test_trackio_has_a_run_for_each_stage_and_one_for_the_study(tmp_path):
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}  # read when it is imported
    program = [sys.executable, "-m", "tests.fixtures.tracked_sweep", str(tmp_path), "trackio"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert f"loggers: trackio: {tmp_path}/trackio" in done.stdout
    tables = sqlite3.connect(tmp_path / "trackio/rayexp.db")
    configs = {name: json.loads(text) for name, text in tables.execute("SELECT run_name, config FROM configs")}
    assert set(configs) == {DONE.label, LOST.label, STUDY}
    assert {config["_Group"] for config in configs.values()} == {STUDY}
    assert configs[DONE.label].items() >= {"stage_id": DONE.id, "grpo.kl_beta": 0.1}.items()
    logged = {}
    for name, step, text in tables.execute("SELECT run_name, step, metrics FROM metrics"):
        logged.setdefault(name, {})[step] = json.loads(text)
    assert logged[DONE.label] == {1: {"grpo/kl": CURVE[1]}, 2: {"grpo/kl": CURVE[2]}, DONE.steps: RESULTS}
    assert logged[LOST.label].keys() == {1, 2}
    (verdicts,) = logged[STUDY].values()
    assert [tuple(row.values()) for row in verdicts["summary"]["_value"]] == list(VERDICTS.items())


def test_verdicts_and_results_are_those_of_the_report(tmp_path, monkeypatch):
    """Use a study with nothing left to run. Its verdicts are written all the same."""
    told = []
    monkeypatch.setattr(Trackers, "write_study", lambda self, verdicts: told.append(verdicts))
    store = study(tmp_path)
    with local_sweep.without_ray():
        rows = api.run(STAGES, RunConfig(store=store.url), name="mine", loggers=["csv"])
    (verdicts,) = told
    assert any(about.startswith("C1 No mass, no gain | ") for about in verdicts)
    assert {text.partition(":")[0] for text in verdicts.values()} <= {"holds", "not measured"}
    from rayexp.reports import summary

    (measurement,) = [stage for stage in PLAN.stages if stage.pool == "measure" and stage.subject is DONE]
    results = summary.results_of(store, measurement)
    of_stage = rows[rows.stage_id == DONE.id]
    ood = of_stage[of_stage.role == "ood"]
    assert results["evaluate/ood/q"] == pytest.approx(ood.q.mean())
    assert results["evaluate/ood/pass_at_64"] == pytest.approx(ood.pass_at_64.mean())
    assert results["evaluate/ood/TS/greedy_correct"] == ood[ood.cell == "TS"].greedy_correct.mean()


# Events on the way


class Recorder:
    """A tracker that records its calls. fails: the call that raises."""

    place = "here"

    def __init__(self, fails=""):
        self.calls = []
        self._fails = fails

    def _take(self, *call):
        self.calls.append(call)
        if call[0] == self._fails:
            raise ConnectionError("the server is gone")

    def start(self, name, params):
        self._take("start", name)
        return name

    def log(self, run, step, numbers):
        self._take("log", run, step, numbers)

    def write(self, run, texts):
        self._take("write", run, texts)

    def end(self, run, done):
        self._take("end", run, done)


@pytest.fixture
def clients(monkeypatch):
    """Replace the existing trackers by ``one`` and ``two``. Return the mapping in which tests put them."""
    found = {}
    monkeypatch.setattr(trackers, "CLIENTS", {name: lambda *_, name=name: found[name] for name in ("one", "two")})
    return found


def test_one_that_fails_is_warned_of_once_and_the_others_go_on(clients, tmp_path, caplog):
    clients |= {"one": Recorder(fails="log"), "two": Recorder()}
    with caplog.at_level(logging.WARNING):
        tracked_sweep.sweep(tmp_path, "one", "two")
    (warning,) = caplog.messages
    assert warning.startswith("loggers: one failed and is switched off")
    assert warning.endswith("the server is gone")
    assert [call[0] for call in clients["one"].calls] == ["start", "log"]
    assert clients["two"].calls[-1] == ("end", STUDY, True)


def test_one_that_hangs_holds_nothing_up_for_long(monkeypatch, caplog):
    from threading import Event

    from rayexp.sweep import stage_runs

    monkeypatch.setattr(stage_runs, "CLOSE_S", 0.1)
    answer = Event()
    behind = BackgroundWriter("slow", StageRuns(Recorder(), Store("nowhere"), lambda measurement: {}))
    behind.call(lambda runs: answer.wait())
    with caplog.at_level(logging.WARNING):
        behind.close()
    answer.set()
    assert "slow is still writing after 0.1 s" in caplog.text


def test_runs_of_a_sweep_that_is_stopped_are_ended(clients, tmp_path):
    clients["one"] = Recorder()

    def stopped():
        with trackers.opened(["one"], Store(str(tmp_path)), STUDY, lambda measurement: {}) as written:
            written.log(DONE, PLAN, 1, {"grpo/kl": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert clients["one"].calls[-1] == ("end", DONE.label, False)


def test_tunes_events_reach_the_trackers(clients, tmp_path):
    clients["one"] = Recorder()
    store = study(tmp_path)
    trial = next(trial for trial in PLAN.trials if DONE in trial.stages)
    tunes = SimpleNamespace(config={"trial": trial.id}, local_path=str(tmp_path / "a-trial"), last_result={"step": 2})
    result = {"stage": DONE.label, "stage_id": DONE.id, "step": 2, "steps": 60, "grpo/kl": 0.5}
    with trackers.opened(["one"], store, STUDY, lambda measurement: RESULTS) as written:
        events = TuneEvents(Progress(PLAN, lambda stage: 1.0), (), written)
        events.on_trial_complete(0, [], SimpleNamespace(config={"trial": PLAN.trials[0].id}, last_result=None))
        events.on_trial_start(0, [], tunes)
        events.on_trial_result(0, [], tunes, result)
        events.on_trial_result(0, [], tunes, {"step": 2, "done": True})
        events.on_trial_complete(0, [], tunes)
    run = DONE.label
    assert clients["one"].calls == [
        ("start", run),
        ("log", run, 2, {"grpo/kl": 0.5}),
        ("log", run, DONE.steps, RESULTS),
        ("end", run, True),
    ]


def test_files_are_kept_though_the_sweep_is_stopped(tmp_path, capsys):
    store = Store(str(tmp_path / "store"))
    folder = tmp_path / "session" / "a-trial"
    folder.mkdir(parents=True)

    def sweep():
        with trackers.opened(("csv",), store, "demo", lambda measurement: {}) as opened:
            opened.add_folder(folder)
            (folder / "progress.csv").write_text("step\n1\n")
            (folder / "params.pkl").write_bytes(b"code, perhaps")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep()
    (kept,) = (tmp_path / "store/studies/demo/loggers").glob("*/a-trial")
    assert [file.name for file in kept.iterdir()] == ["progress.csv"]
    printed = capsys.readouterr().out
    assert str(folder.parent) in printed
    assert str(kept.parent) in printed


def test_nothing_is_written_where_none_was_asked_for(tmp_path):
    with trackers.opened((), Store(str(tmp_path)), "demo", lambda measurement: {}) as opened:
        opened.add_folder(tmp_path / "a-trial")
    assert not list(tmp_path.rglob("loggers"))
