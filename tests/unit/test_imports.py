"""The pure core runs without Ray. import-linter checks that imports go down the layers (pyproject.toml)."""

import ast
import re
import subprocess
import sys

import pytest

from tests.fixtures.checkout import ROOT

PURE = ("tasks", "models", "objectives", "rl", "training", "sampling", "evaluation")


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file):
    """Return every module that the file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {module_of(file): imports_of(file) for folder in ("rayexp", "jobs") for file in (ROOT / folder).rglob("*.py")}


@pytest.mark.parametrize(
    ("packages", "module"),
    [(("vllm",), "rayexp.sampling.vllm_sampler"), (("ray.tune", "ray.air"), "rayexp.sweep.scheduler")],
)
def test_one_module_imports_it(packages, module):
    """Count names below a package as well, such as ``ray.tune.logger``."""
    wanted = tuple(f"{package}." for package in packages)
    users = [user for user, names in FILES.items() if any(f"{name}.".startswith(wanted) for name in names)]
    assert users == [module]


@pytest.mark.slow
def test_importing_the_pure_core_imports_no_ray():
    """Include imports through other packages, and vLLM, which takes many seconds."""
    modules = [m for m in FILES if m.startswith(tuple(f"rayexp.{name}" for name in PURE))]
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert {"rayexp", "torch"} <= loaded
    assert not loaded & {"ray", "vllm"}


def test_objectives_are_named_where_there_is_no_torch():
    """Validate the names as a plan does. The objectives import no other module of the project."""
    modules = [module for module in FILES if module.startswith("rayexp.objectives")]
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(result.stdout.split())
    assert "torch" not in loaded
    assert {name for name in loaded if name.split(".")[0] == "rayexp"} == {"rayexp", *modules}


@pytest.mark.parametrize("module", ["rayexp.api", "rayexp.reports.page", "rayexp.service.app", "rayexp.cli"])
def test_a_plan_a_report_and_a_page_need_neither_torch_nor_ray(module):
    """Save seconds and hundreds of megabytes. transformers counts as well, because it may import torch at any time."""
    program = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "transformers", "ray", "vllm"} & set(result.stdout.split())


def test_no_test_module_serves_another():
    imported = {name for file in (ROOT / "tests").rglob("*.py") for name in imports_of(file)}
    assert [name for name in imported if re.match(r"tests\.(.*\.)?(test_|conftest)", name)] == []
