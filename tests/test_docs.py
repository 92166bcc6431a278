"""The documentation is true: its commands work, its worked changes apply and do what they say, its tables agree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import alone, shell

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WORKED = [page for page in PAGES if shell.blocks(page.read_text(), "diff")]
PLAIN = [page for page in PAGES if page not in WORKED]


def named(page: Path) -> str:
    return page.name


def tracked() -> list[str]:
    """The files of the checkout, changed and new ones as they are, without what git ignores."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the store ``runs`` in it, which has a small demo, under its name at tiny scale as well."""
    folder = tmp_path_factory.mktemp("reader")
    store = folder / "runs"
    assert alone.main(["--scale", "toy", "--store", str(store)]) == 0
    shutil.copytree(store / "studies/demo-toy", store / "studies/demo-tiny")
    return folder


@pytest.mark.parametrize("page", PLAIN, ids=named)
def test_every_command_is_proved(page, runs, monkeypatch):
    monkeypatch.chdir(runs)
    for command in shell.commands(page.read_text()):
        shell.prove(command)


@pytest.mark.parametrize("page", WORKED, ids=named)
def test_a_worked_change_applies_and_does_what_the_page_says(page, tmp_path):
    """In a copy of the checkout, its commands run on the changed code."""
    for name in tracked():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for change in shell.blocks(page.read_text(), "diff"):
        applied = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=change, text=True, capture_output=True)
        assert applied.returncode == 0, applied.stderr
    done = subprocess.run(
        [sys.executable, "-m", "tests.shell", str(page)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ruff = subprocess.run([Path(sys.executable).parent / "ruff", "check", "--no-cache", "."], cwd=tmp_path)
    assert ruff.returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_programs_in_python_run(page, runs, monkeypatch):
    monkeypatch.chdir(runs)
    for program in shell.blocks(page.read_text(), "python"):
        exec(compile(program, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_a_command_that_nobody_knows_is_an_error():
    with pytest.raises(AssertionError, match="says how this is proved: curl"):
        shell.prove(["curl", "example.org"])
    with pytest.raises(AssertionError, match="has no option --nodes"):
        shell.prove(["ray", "symmetric-run", "--nodes", "3"])
    with pytest.raises(AssertionError, match="refused"):
        shell.prove(["python", "jobs/sweep.py", "--study", "colours"])
