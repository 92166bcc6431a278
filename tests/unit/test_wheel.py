"""The documented commands of an installed project that is not editable, as on a cluster or in a container."""

import email
import json
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.fixtures import local_sweep
from tests.fixtures.checkout import ROOT, plain_shell


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout. Return its path."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a venv with the wheel and this venv's dependencies, but without access to the checkout."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (packages,) = venv.glob("lib/python*/site-packages")
    # A plain path at the end: its .pth files, one of which leads to the checkout, are then not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    install = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel]
    subprocess.run([sys.executable, "-m", *install], check=True)
    return python


def run(python: Path, folder: Path, *command: str) -> str:
    """Return the output of a command in a folder that has only ``jobs`` of the checkout."""
    shutil.copytree(ROOT / "jobs", folder / "jobs", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in plain_shell().items() if name != "PYTHONPATH"}
    done = subprocess.run([python, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_project_comes_from_the_wheel(installed, tmp_path):
    place = run(installed, tmp_path, "-c", "import rayexp; print(rayexp.__file__)").strip()
    assert Path(place).is_relative_to(installed.parent.parent)


def test_a_job_plans(installed, tmp_path):
    assert run(installed, tmp_path, "jobs/sweep.py", "--scale", "toy", "--plan").startswith("plan of study ")


def test_a_study_is_planned_from_any_folder(installed, tmp_path):
    """Use the command alone, without ``jobs``."""
    plan = run(installed, tmp_path, str(installed.with_name("rayexp")), "plan", "demo", "--scale", "toy")
    assert plan.startswith("plan of study demo: 12 stages")


@pytest.mark.soak
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_demo_runs_from_any_folder(installed, tmp_path):
    """Run the whole demo on Ray by the command alone, and read its results with the other commands."""
    rayexp = str(installed.with_name("rayexp"))
    said = run(installed, tmp_path, rayexp, "run", "demo", "--scale", "toy", "--ood-ratios", "0.5")
    assert "report:" in said
    assert (tmp_path / "runs/studies/demo-toy/report/index.html").exists()
    listed = json.loads(run(installed, tmp_path, rayexp, "ls", "--json"))
    assert sorted(stage["kind"] for stage in listed["finished"]) == ["evaluate"] * 3 + ["grpo", "pretrain", "sft"]


def test_every_job_and_command_explains_itself(installed, tmp_path):
    for job in sorted((ROOT / "jobs").glob("*.py")):
        assert "--study" in run(installed, tmp_path, f"jobs/{job.name}", "--help")
    assert "rayexp ls" in run(installed, tmp_path, str(installed.with_name("rayexp")), "--help")


@pytest.mark.slow
def test_a_report_is_written(installed, tmp_path):
    """Use its template and all other files that are not Python."""
    study = ["--scale", "toy", "--ood-ratios", "0.5", "--seeds", "0", "--store", str(tmp_path / "runs")]
    assert local_sweep.main(study) == 0
    pages = list(tmp_path.glob("runs/studies/*/report/index.html"))
    pages[0].unlink()
    run(installed, tmp_path, "jobs/report.py", *study)
    assert list(tmp_path.glob("runs/studies/*/report/index.html")) == pages


def test_the_wheel_has_its_licence(wheel):
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        stated = email.message_from_bytes(files.read(metadata))
        held = files.read(metadata.replace("METADATA", "licenses/LICENSE"))
    assert (stated["License-Expression"], stated["License-File"]) == ("Apache-2.0", "LICENSE")
    assert held == (ROOT / "LICENSE").read_bytes()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == stated["License-Expression"]


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    listed = subprocess.run(["git", "ls-files", "rayexp"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= set(zipfile.ZipFile(wheel).namelist())
