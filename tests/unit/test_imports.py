"""The pure core runs where there is no Ray, and imports go one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = ("world", "learning", "sampling", "evaluation")
#: From the bottom up; a module imports its own layer and those below. world imports of the others only errors.
LAYERS = (
    (
        "rayexp.tasks.strings",
        "rayexp.errors",
        "rayexp.timeouts",
        "rayexp.telemetry.logs",
        "rayexp.telemetry.metrics",
        "rayexp.telemetry.grafana",
        "rayexp.host",
    ),
    ("rayexp.spec", "rayexp.stages.settings", "rayexp.store.provenance"),
    ("rayexp.sampling", "rayexp.learning", "rayexp.evaluation", "rayexp.studies.presets", "rayexp.terminal"),
    (
        "rayexp.store.filesystem",
        "rayexp.store.probe",
        "rayexp.store.leases",
        "rayexp.store.artifacts",
        "rayexp.telemetry.metric_log",
        "rayexp.store.index",
        "rayexp.export",
    ),
    ("rayexp.actors",),
    ("rayexp.stages",),
    ("rayexp.studies", "rayexp.sweep", "rayexp.reports"),
    ("rayexp.cli",),
    ("jobs",),
)


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module):
    for level, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return level
    return None


def imports_of(file):
    """Every module that the file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {module_of(file): imports_of(file) for folder in ("rayexp", "jobs") for file in (ROOT / folder).rglob("*.py")}


def test_every_module_has_a_layer():
    assert [module for module in FILES if layer_of(module) is None] == ["rayexp"]
    assert len(FILES) > 30


@pytest.mark.parametrize("module", sorted(set(FILES) - {"rayexp"}))
def test_imports_go_down_only(module):
    for imported in FILES[module]:
        if imported.split(".")[0] in ("rayexp", "jobs"):
            level = layer_of(imported)
            assert level is not None, f"{module} imports {imported}"
            assert level <= layer_of(module), f"{module} imports {imported}, which is above it"


def test_only_the_layers_above_the_core_import_ray():
    users = {module for module, names in FILES.items() if any(name.split(".")[0] == "ray" for name in names)}
    assert users
    assert all(layer_of(module) >= layer_of("rayexp.actors") for module in users)
    assert not [module for module in users if module.startswith(("rayexp.studies", "rayexp.reports"))]


def test_one_module_imports_vllm():
    users = [module for module, names in FILES.items() if any(name.split(".")[0] == "vllm" for name in names)]
    assert users == ["rayexp.sampling.vllm_sampler"]


def test_importing_the_pure_core_imports_no_ray():
    """Not even by way of another package; nor vLLM, which takes many seconds."""
    modules = [m for m in FILES if m.startswith(tuple(f"rayexp.{name}" for name in PURE))]
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert {"rayexp", "torch"} <= loaded
    assert not loaded & {"ray", "vllm"}
