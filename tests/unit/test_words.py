"""Plain English: no docstring has a pattern over which readers stumble."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: A docstring begins with what the thing is or does, not with a clause about it.
OPENERS = {"How", "Of", "That", "Those", "What", "Where", "Whether", "Which"}
FOLDERS = ("benchmarks", "findings", "jobs", "rayexp", "tests")


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield every docstring, after its place."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            of_kind = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if of_kind and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', '')}", text


def test_no_docstring_opens_with_a_clause():
    found = {where: text.splitlines()[0] for where, text in docstrings() if text.split()[0].strip(",.:") in OPENERS}
    assert not found
