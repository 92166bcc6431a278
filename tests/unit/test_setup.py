"""Set-up by two commands, in a folder of almost any name. Its needs are installed, or named before it starts."""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayexp.distributed import surroundings
from rayexp.errors import RefusedError
from tests.fixtures import chromium
from tests.fixtures.checkout import ROOT

BORNE = ["a b", "a#b", "a&b;c", "ä(b)", "a*b?[c]", "a%b~!=,@", "-a"]
NOT_BORNE = ["a:b", "a$b", "a`b", "it's", 'a"b', "a\\b"]


#: A program in place of Python.
SAYING = """#!/bin/sh
echo "said: $0 $*"
mkdir -p .venv/bin
[ -e .venv/bin/python ] || cp "$0" .venv/bin/python
"""


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``make`` in a folder with those files of this checkout that it reads first."""
    folder.mkdir(exist_ok=True)
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # this may run in make
    return subprocess.run(["make", "EXTRA=cpu", *arguments], cwd=folder, env=plain, capture_output=True, text=True)


@pytest.mark.parametrize("name", BORNE)
def test_make_works_in_a_folder_of_almost_any_name(tmp_path, name):
    """Use a Python that prints its arguments, also as the Python of the venv. Every target finds it."""
    python = tmp_path / "python"
    python.write_text(SAYING)
    python.chmod(0o755)
    done = {what: make(tmp_path / name, f"PYTHON={python}", what) for what in ("demo", "check", "test", "soak", "head")}
    assert {what: run.stderr for what, run in done.items() if run.returncode} == {}
    demo, check, test, soak, head = done.values()
    assert f"said: {python} -m venv .venv\n" in demo.stdout
    assert "said: .venv/bin/python jobs/sweep.py --study demo --store runs --serve\n" in demo.stdout
    pytest_run = "said: .venv/bin/python -m pytest --numprocesses 2"
    fast = "-m not slow and not soak and not vllm and not gpu"
    assert f"{pytest_run} --dist worksteal {fast} tests/unit\n" in check.stdout
    assert f"{pytest_run} --dist worksteal -m not soak --ignore tests/integration\n" in test.stdout
    assert f"{pytest_run} --dist loadfile -m soak\n" in soak.stdout
    assert "chromium" not in check.stdout
    assert test.stdout.startswith(f"{python} tests/fixtures/chromium.py\n")
    for linted in (check, test):
        assert "said: .venv/bin/python .venv/bin/lint-imports --no-cache\n" in linted.stdout
        assert [tool for tool in ("ruff check", "ruff format", "pyright") if f"-m {tool}" not in linted.stdout] == []
    assert f"{pytest_run} --dist loadfile --no-loadscope-reorder -m not soak tests/integration\n" in test.stdout
    assert " start --head --block " in head.stdout


def test_ray_finds_the_function_that_make_head_names():
    (name,) = re.findall(r"RAY_START_HOOK=(\S+)", (ROOT / "Makefile").read_text())
    assert callable(pkgutil.resolve_name(name))


@pytest.mark.parametrize("name", NOT_BORNE)
def test_what_a_venv_or_ray_cannot_bear_is_refused_before_anything_is_installed(tmp_path, name):
    done = make(tmp_path / name, "demo")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "rename it" in done.stderr
    assert sorted(os.listdir(tmp_path / name)) == ["Makefile", "pyproject.toml"]


@pytest.fixture
def python_at(monkeypatch, tmp_path):
    """Return a function that makes this Python callable by a path in a folder of a given name."""

    def at(name: str) -> Path:
        (tmp_path / name).symlink_to(sys.prefix)
        monkeypatch.setattr(sys, "executable", str(tmp_path / name / "bin" / "python"))
        return tmp_path / name

    return at


@pytest.mark.parametrize("name", BORNE)
def test_ray_gets_a_path_of_python_that_bash_takes_as_one_word(python_at, name):
    prefix = python_at(name)
    surroundings.use_plain_path()
    where = f"exec {sys.executable} -c 'import sys; print(sys.prefix)'"
    done = subprocess.run(["bash", "-c", where], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == prefix.resolve()


def test_a_path_that_needs_nothing_stays(python_at):
    before = str(python_at("plain") / "bin" / "python")
    surroundings.use_plain_path()
    assert sys.executable == before


@pytest.mark.parametrize("name", ["it's", 'a"b', "a\\b"])
def test_a_place_from_which_ray_starts_no_worker_is_refused(monkeypatch, name):
    monkeypatch.setattr(surroundings.ray, "__file__", f"/home/{name}/ray/__init__.py")
    with pytest.raises(RefusedError, match="Ray is installed in /home/"):
        surroundings.use_plain_path()


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine with some programs, and returns the commands that were run. Chromium
    becomes available when it is installed."""

    def build(*programs: str, root: bool = False, debian: bool = False, works: bool = True) -> list[str]:
        there, ran = set(programs), []

        def run(command: list[str]) -> subprocess.CompletedProcess[str]:
            ran.append(" ".join(command))
            if works and "install" in command:
                there.add("chromium")
            return subprocess.CompletedProcess(command, 0 if works else 100)

        monkeypatch.setattr(chromium.shutil, "which", lambda name: f"/usr/bin/{name}" if name in there else None)
        monkeypatch.setattr(chromium.subprocess, "run", run)
        monkeypatch.setattr(chromium.os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(chromium, "debian", lambda: debian)
        return ran

    return build


def test_chromium_is_installed_once(machine):
    ran = machine("apt-get", "google-chrome", root=True, debian=True)
    assert chromium.main() == 0
    assert ran == []
    ran = machine("apt-get", root=True, debian=True)
    assert chromium.main() == 0
    assert [command.partition("apt-get ")[::2] for command in ran] == [
        ("env DEBIAN_FRONTEND=noninteractive ", "update"),
        ("env DEBIAN_FRONTEND=noninteractive ", "install --yes --no-install-recommends chromium"),
    ]
    ran = machine("apt-get", "sudo", debian=True)
    assert chromium.main() == 0
    assert all(command.startswith("sudo ") for command in ran)


@pytest.mark.parametrize(
    ("there", "command"),
    [
        ({"programs": ("apt-get",), "debian": True}, "as root, apt-get install --yes --no-install-recommends chromium"),
        ({"programs": ("apt-get", "sudo"), "debian": True, "works": False}, "sudo apt-get install --yes"),
        ({"programs": ("apt-get", "sudo", "snap")}, "sudo snap install chromium"),
        ({"programs": ("dnf", "sudo")}, "sudo dnf install chromium"),
        ({"programs": ("pacman",), "root": True}, "first: pacman -S chromium"),
        ({"programs": ("brew", "sudo")}, "first: brew install --cask chromium"),
        ({"programs": ()}, "a `chromium` on the PATH"),
    ],
)
def test_where_chromium_has_to_be_installed_by_hand_the_command_is_said(machine, capsys, there, command):
    ran = machine(*there.pop("programs"), **there)
    assert chromium.main() == 1
    assert command in capsys.readouterr().err
    assert len(ran) <= 1
