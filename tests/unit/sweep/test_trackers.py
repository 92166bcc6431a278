"""Tune's loggers: refused before anything starts, or their files are kept, however the sweep ends."""

from typing import Any

import pytest

from rayexp.store.artifacts import Store
from rayexp.sweep import trackers
from rayexp.sweep.scheduler import tracker_callbacks
from rayexp.sweep.trackers import Trackers


@pytest.mark.parametrize("names", [(), ("csv",), ("json", "tensorboard")])
def test_those_that_come_with_ray_can_be_had(names):
    trackers.require(names)
    assert len(tracker_callbacks(Trackers(names))) == len(names)


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match="loggers is 'visdom'; allowed: csv, json, tensorboard, wandb"):
        trackers.require(("csv", "visdom"))


def test_wandb_without_its_package_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a package: pip install 'rayexp\[wandb\]'"):
        trackers.require(("wandb",))


def test_wandb_without_a_login_is_refused(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no API key; allowed: WANDB_API_KEY set, `wandb login` done"):
        trackers.require(("wandb",))
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.require(("wandb",))


def test_wandb_has_no_run_to_end_of_a_trial_whose_process_never_started(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    callbacks: list[Any] = tracker_callbacks(Trackers(("wandb",), "demo"))
    callbacks[0].log_trial_end(object(), failed=True)


def test_files_are_kept_though_the_sweep_is_stopped(tmp_path, capsys):
    store = Store(str(tmp_path / "store"))
    folder = tmp_path / "session" / "a-trial"
    folder.mkdir(parents=True)

    def sweep():
        with trackers.opened(("csv",), store, "demo") as opened:
            opened.add_folder(folder)
            (folder / "progress.csv").write_text("step\n1\n")
            (folder / "params.pkl").write_bytes(b"code, perhaps")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep()
    (kept,) = (tmp_path / "store/studies/demo/loggers").glob("*/a-trial")
    assert [file.name for file in kept.iterdir()] == ["progress.csv"]
    assert str(folder.parent) in capsys.readouterr().out


def test_nothing_is_written_where_none_was_asked_for(tmp_path):
    with trackers.opened((), Store(str(tmp_path)), "demo") as opened:
        opened.add_folder(tmp_path / "a-trial")
    assert not list(tmp_path.rglob("loggers"))
