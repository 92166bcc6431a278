"""The documentation is true: its commands work, its worked changes apply and have their effect, its tables agree."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from rayexp.execution.rollout_log import RolloutLog
from rayexp.reports import table
from rayexp.studies import STUDIES, Grid, usual_grid
from rayexp.studies.presets import SCALES
from rayexp.sweep.plan import Plan
from tests.fixtures import local_sweep, shell
from tests.fixtures.checkout import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WORKED = [page for page in PAGES if shell.blocks(page.read_text(), "diff")]
PLAIN = [page for page in PAGES if page not in WORKED]
#: The pages whose commands take more than some four seconds, and how much more.
LONG = {"CONTRIBUTING.md": pytest.mark.slow, "reproducing.md": pytest.mark.slow, "bring-your-own.md": pytest.mark.soak}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def tracked() -> list[str]:
    """Return the files of the checkout, including changed and new ones, without those that git ignores."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with the store ``runs``. It has a small demo, also under its name at tiny scale."""
    folder = tmp_path_factory.mktemp("reader")
    store = folder / "runs"
    assert local_sweep.main(["--scale", "toy", "--store", str(store)], figures=True) == 0
    shutil.copytree(store / "studies/demo-toy", store / "studies/demo-tiny")
    plan = store / "studies/demo-tiny/plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"scale": "tiny", "settings": {}}))
    return folder


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=LONG.get(page.name, ())) for page in PLAIN],
    ids=named,
)
def test_every_command_and_program_works(page, runs, monkeypatch):
    monkeypatch.chdir(runs)
    shell.follow(page.read_text())


def test_the_notebook_runs_and_shows_its_figures(runs):
    """Run it at toy scale. Its committed outputs are of scale tiny and of the present cells, except the last: an
    interactive chart has a megabyte of script."""
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    shown = [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.source = cell.source.replace('scale="tiny"', 'scale="toy"')
    with mock.patch.dict(os.environ, RAY_ADDRESS="nowhere"):  # all is finished, so Ray is not needed
        NotebookClient(notebook, resources={"metadata": {"path": str(runs)}}).execute()
    *run, chart = [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert [*run, set()] == shown
    assert "text/html" in chart
    assert sum("image/png" in found for found in shown) == 2
    assert sum(len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code") <= 15


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    """Return the kinds of output of a cell."""
    assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.outputs
    return {kind for output in cell.outputs for kind in output.get("data", {"text/plain": ""})}


@pytest.mark.parametrize("page", WORKED, ids=named)
def test_a_worked_change_applies_to_the_checkout(page, tmp_path):
    applied_to_a_copy(page, tmp_path)
    ruff = subprocess.run([Path(sys.executable).parent / "ruff", "check", "--no-cache", "."], cwd=tmp_path)
    assert ruff.returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize("page", WORKED, ids=named)
def test_a_worked_change_does_what_the_page_says(page, tmp_path):
    """Run the page's commands on the changed code."""
    applied_to_a_copy(page, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.shell", str(page)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def applied_to_a_copy(page: Path, folder: Path) -> None:
    """Copy the checkout into a folder, and apply a page's changes to the copy."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for change in shell.blocks(page.read_text(), "diff"):
        applied = subprocess.run(["git", "apply", "-"], cwd=folder, input=change, text=True, capture_output=True)
        assert applied.returncode == 0, applied.stderr


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_into_a_page_lead_to_a_heading(page):
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [
        (file, anchor) for file, anchor in links if anchor not in anchors(page.parent / file if file else page)
    ] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tests_that_a_promise_names_are_there():
    promised = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert promised
    assert [name for file, name in promised if f"def {name}(" not in (ROOT / "tests" / file).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_are_there(page):
    """Allow a page to leave out the package, as in `sampling/base.py`, or the folder of tests."""
    named_files = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|sh|md))[`:]", page.read_text())
    homes = [ROOT, ROOT / "rayexp", ROOT / "tests"]
    assert [name for name in named_files if not any((home / name).exists() for home in homes)] == []


def test_a_command_that_nobody_knows_is_an_error():
    with pytest.raises(AssertionError, match="says how this is proved: curl"):
        shell.prove(["curl", "example.org"])
    with pytest.raises(AssertionError, match="has no option --nodes"):
        shell.prove(["ray", "symmetric-run", "--nodes", "3"])
    with pytest.raises(AssertionError, match="refused"):
        shell.prove(["python", "jobs/sweep.py", "--study", "colours"])


# The trees of README.md and docs/architecture.md


def tree_of(page: str) -> tuple[list[str], list[str]]:
    """Return the packages of rayexp that a page's tree describes, and the folders of the checkout."""
    tree = next(block for block in shell.blocks((ROOT / page).read_text(), "") if block.startswith("rayexp/"))
    return re.findall(r"^  (\w+)/  +\S", tree, re.MULTILINE), re.findall(r"^(\w+)/", tree, re.MULTILINE)


def test_the_trees_are_those_of_the_checkout():
    packages, _ = tree_of("docs/architecture.md")
    assert sorted(packages) == sorted(folder.parent.name for folder in (ROOT / "rayexp").glob("*/__init__.py"))
    shown, _ = tree_of("README.md")
    assert set(shown) < set(packages)
    assert all((ROOT / name).is_dir() for page in ("README.md", "docs/architecture.md") for name in tree_of(page)[1])


# docs/results.md


def tables(page: str) -> dict[str, list[list[str]]]:
    """Return the rows of the first table of every section of a page, as cells without backticks."""
    found = {}
    for section in re.split(r"^## ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")][2:]
        rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
        found[section.partition("\n")[0]] = rows
    return found


def columns(section: str) -> list[str]:
    return [row[0] for row in tables("results.md")[section]]


@pytest.mark.parametrize(
    ("section", "schema"),
    [("results.parquet of a study", table.RESULTS), ("rollouts.parquet of a stage", RolloutLog.SCHEMA)],
)
def test_columns_and_their_types_are_those_of_the_schema(section, schema):
    described = [row[:2] for row in tables("results.md")[section]]
    assert described == [[column.name, str(column.type)] for column in schema]


def test_columns_of_the_small_tables_are_those_that_are_written(runs):
    study = runs / "runs/studies/demo-toy"
    assert columns("claims.csv") == list(pd.read_csv(study / "claims.csv"))
    repeated = re.findall(
        r"`(\w+)`", (ROOT / "docs/results.md").read_text().partition("## summary.csv")[2].partition("|")[0]
    )
    assert [*repeated, *columns("summary.csv")] == list(pd.read_csv(study / "summary.csv"))


def test_metrics_are_those_that_are_logged(runs):
    logged = pd.concat(map(pd.read_parquet, (runs / "runs/stages").glob("*/metrics.parquet")))
    assert list(logged) == ["step", "metric", "value"]
    assert set(columns("metrics.parquet of a stage")) == set(logged.metric)


def test_every_file_of_a_stage_and_of_a_study_is_listed(runs):
    listed = shell.blocks((ROOT / "docs/results.md").read_text(), "")[0]
    files = [path for part in ("stages", "studies") for path in (runs / "runs" / part).rglob("*") if path.is_file()]
    assert {name for path in files if (name := re.sub(r"figure-\d+", "figure-N", path.name)) not in listed} == set()


# docs/reproducing.md

SHOWN = ("tiny", "small", "paper")
TINY_FLOPS = 1e11  # measured on 2 cores in objections-tiny, whose stages have 6.07e14: docs/findings/runs.csv
H100_FLOPS = 1e14  # assumed: sustained FLOP/s of training


def cost(study: str, scale: str) -> str:
    """Return the content of a cell of the table: stages, estimated FLOP, and time if there is a rate."""
    flop = sum(stage.flops for stage in plan_of(study, scale).stages)
    time = {
        "tiny": f", {flop / TINY_FLOPS / 60:.0f} min",
        "small": "",
        "paper": f", {flop / H100_FLOPS / 3600:.0f} h",
    }
    return f"{len(plan_of(study, scale).stages)} stages, {flop:.1e}{time[scale]}".replace("e+", "e")


@functools.cache
def plan_of(study: str, scale: str) -> Plan:
    usual = usual_grid(study, SCALES[scale])
    searched = any(isinstance(ratio, str) for ratio in usual["ood_ratios"])
    ratios = SCALES[scale].ood_ratios if searched else usual["ood_ratios"]
    return Plan.of(study, STUDIES[study](SCALES[scale], Grid(ratios, usual["kl_betas"], usual["seeds"])), ())


def test_costs_are_those_of_the_plans():
    rows = tables("reproducing.md")["What it costs"]
    assert rows == [[study, *(cost(study, scale) for scale in SHOWN)] for study in STUDIES]
