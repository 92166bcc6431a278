"""Plain English: no docstring has a pattern over which readers stumble."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: A docstring begins with what the thing is or does, not with a clause about it.
OPENERS = {"How", "Of", "That", "Those", "What", "Where", "Whether", "Which"}
#: A function's docstring begins with a verb. That of a property may be a noun phrase.
NO_VERBS = {
    *OPENERS,
    "A",
    "All",
    "Also",
    "An",
    "And",
    "As",
    "By",
    "Each",
    "Every",
    "For",
    "If",
    "Its",
    "Not",
    "One",
    "So",
    "The",
}
FOLDERS = ("benchmarks", "findings", "jobs", "rayexp", "tests")


def docstrings() -> Iterator[tuple[str, ast.AST, str]]:
    """Yield every docstring, after its place and what it is of."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            of_kind = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if of_kind and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', '')}", node, text


def is_plain_function(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_docstring_opens_with_a_clause_and_no_functions_without_a_verb():
    found = {
        where: text.splitlines()[0]
        for where, node, text in docstrings()
        if text.split()[0].strip(",.:") in (NO_VERBS if is_plain_function(node) else OPENERS)
    }
    assert not found
