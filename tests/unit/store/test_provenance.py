"""The record of a stage's run: its known facts are true, and unknown ones never make a stage fail."""

import getpass
import json
import platform
import subprocess
import sys

import pytest

from rayexp import host
from rayexp.config import RunConfig
from rayexp.store import provenance
from rayexp.store.filesystem import Files
from rayexp.store.leases import Leases
from rayexp.store.provenance import (
    NO_PART_OF_A_STAGE,
    checkout,
    command_line,
    fingerprint,
    other_code,
    without_secrets,
)
from rayexp.telemetry.metric_log import MetricLog
from tests.fixtures.factories import pretrain

STAGE = pretrain()
EXECUTION = RunConfig(store="s3://bucket/runs", rollout_workers=3, argv=("jobs/sweep.py", "--seeds", "0"))


def test_provenance_is_json_and_says_how_it_was_run():
    said = json.loads(json.dumps(MetricLog(STAGE).provenance(EXECUTION)))
    assert RunConfig.model_validate(said["run_config"]) == EXECUTION.model_copy(update={"argv": ()})
    assert said["packages"]["torch"]
    assert said["argv"] == ["jobs/sweep.py", "--seeds", "0"]
    assert said["source"] == provenance.source()
    assert "lease" not in said["run_config"]


def unable(*arguments, **options):
    raise KeyError("getpwuid(): uid not found: 54321")


@pytest.mark.parametrize(
    ("owner", "name", "fact"),
    [
        (getpass, "getuser", "user"),
        (platform, "node", "host"),
        (host, "processor", "machine"),
        (host, "cores", "machine"),
        (platform, "python_version", "python"),
        (subprocess, "run", "git"),
        (provenance, "fingerprint", "source"),
    ],
)
def test_what_a_machine_cannot_tell_fails_no_stage(monkeypatch, owner, name, fact):
    for cached in (provenance.git_state, provenance.source):
        cached.cache_clear()
    monkeypatch.setattr(owner, name, unable)
    found = MetricLog(STAGE).provenance(EXECUTION)
    for cached in (provenance.git_state, provenance.source):
        cached.cache_clear()
    assert found[fact] is None
    assert [name for name, value in found.items() if value is None] == [fact]


def test_packages_without_metadata_fail_no_stage(monkeypatch):
    monkeypatch.setattr(provenance, "version", unable)
    assert MetricLog(STAGE).provenance(EXECUTION)["packages"] == {}


def test_a_driver_is_named_by_a_file_name_whatever_its_host_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "a/../b c")
    with Leases(Files(str(tmp_path))) as leases:
        assert "/" not in leases.driver
        assert leases.take("work")


# Git


@pytest.fixture
def repository(tmp_path):
    """Return a repository with a committed package ``rayexp`` at its root."""
    (tmp_path / "rayexp").mkdir()
    (tmp_path / "rayexp" / "__init__.py").write_text("")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "--message", "x")
    return tmp_path


def _git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True).stdout.decode().strip()


def test_the_commit_is_that_of_the_packages_own_repository(repository):
    commit = _git(repository, "rev-parse", "HEAD")
    (repository / "notes.txt").write_text("beside the package")
    assert checkout(repository / "rayexp") == {"commit": commit, "changed": False}
    (repository / "rayexp" / "__init__.py").write_text("x = 1")
    assert checkout(repository / "rayexp") == {"commit": commit, "changed": True}


def test_a_repository_that_merely_encloses_the_package_is_not_named(repository):
    installed = repository / ".venv" / "lib" / "rayexp"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert checkout(installed) is None
    _git(repository, "rm", "--quiet", "-r", "--cached", "rayexp")
    assert checkout(repository / "rayexp") is None  # at the root, but not tracked


def test_the_repository_of_a_git_hook_is_not_taken_for_the_packages(repository, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    _git(other, "init", "--quiet")
    commit = _git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert checkout(repository / "rayexp") == {"commit": commit, "changed": False}


# Code


def test_a_change_of_code_that_stages_run_changes_the_fingerprint_and_no_other_does(tmp_path):
    for name in ("objectives/losses.py", "cli/run.py", "reports/page.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("loss = 1")
    before = fingerprint(tmp_path, NO_PART_OF_A_STAGE)
    (tmp_path / "reports" / "page.py").write_text("title = 2")
    (tmp_path / "objectives" / "notes.txt").write_text("x")
    assert fingerprint(tmp_path, NO_PART_OF_A_STAGE) == before
    (tmp_path / "objectives" / "losses.py").write_text("loss = 3")
    assert fingerprint(tmp_path, NO_PART_OF_A_STAGE) != before


@pytest.mark.slow
def test_no_stage_imports_what_the_fingerprint_leaves_out():
    program = (
        "import sys, rayexp.execution.rollout_loop, rayexp.execution.grpo, rayexp.execution.supervised; "
        "print(*(m for m in sys.modules if 'rayexp.' in m))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    files = {f"{module.removeprefix('rayexp.').replace('.', '/')}.py" for module in done.stdout.split()}
    assert all((provenance.PACKAGE / name).exists() for name in provenance.NO_PART_OF_A_STAGE)
    assert not [file for file in files if file.startswith(provenance.NO_PART_OF_A_STAGE)]


def test_an_artifact_of_other_or_unknown_code_is_told_from_one_of_this():
    record = MetricLog(STAGE).provenance(EXECUTION)
    assert other_code(record) == ""
    git = {"commit": "abc", "changed": True}
    assert other_code({**record, "source": "0f0f", "git": git}) == (
        "other code (source 0f0f, commit abc and uncommitted changes)"
    )
    assert other_code({**record, "source": None}) == other_code({}) == "unknown code"


def test_a_stage_that_other_code_began_is_not_taken_for_this_codes(monkeypatch):
    monkeypatch.setattr(provenance, "source", lambda _: "0f0f")
    begun = MetricLog(STAGE).to_bytes()
    monkeypatch.undo()
    continued = MetricLog(STAGE, begun)
    assert continued.provenance(EXECUTION)["source"] == f"0f0f+{provenance.source()}"
    assert other_code(continued.provenance(EXECUTION)).startswith("other code (source 0f0f+")


# The command line


def test_the_command_line_is_the_drivers():
    assert command_line(["--seeds", "0"])[1:] == ("--seeds", "0")
    assert command_line(None) == tuple(without_secrets(sys.argv))


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("--study tokens --seeds 0", "--study tokens --seeds 0"),
        ("--api-token abc --seeds 0", "--api-token *** --seeds 0"),
        ("--notify https://host/services/abc --seeds 0", "--notify *** --seeds 0"),
        ("--notify=https://host/services/abc", "--notify=***"),
        ("--redis-password=abc", "--redis-password=***"),
        ("WANDB_API_KEY=abc", "WANDB_API_KEY=***"),
        ("--store s3://me:abc@host/runs", "--store s3://***@host/runs"),
        ("--store=https://host/runs?sig=1&access_token=abc", "--store=https://host/runs?sig=1&access_token=***"),
    ],
)
def test_secrets_in_it_are_not_written(typed, kept):
    assert without_secrets(typed.split()) == kept.split()


def test_a_password_in_the_stores_url_is_not_written():
    run_config = EXECUTION.model_copy(update={"store": "sftp://me:open-sesame@host/runs"})
    assert "open-sesame" not in json.dumps(MetricLog(STAGE).provenance(run_config))
