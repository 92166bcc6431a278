"""A user's own questions and answers, from a file or a data set of the Hugging Face hub."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import fsspec
import pandas as pd
from pydantic import Field, model_validator

from rayexp import sources
from rayexp.errors import located, not_among
from rayexp.formatting import one_line
from rayexp.parts import imported
from rayexp.tasks.base import ROLES
from rayexp.tasks.text.base import Question, TextTask
from rayexp.tasks.text.verifiers import VERIFIERS

READERS: dict[str, Callable[[io.BytesIO], pd.DataFrame]] = {
    ".jsonl": lambda file: pd.read_json(file, lines=True, dtype=False, convert_dates=False),
    ".parquet": pd.read_parquet,
    ".csv": lambda file: pd.read_csv(file, dtype=str, keep_default_na=False),
}
#: Line number of the first record in a file, for messages.
FIRST_LINE = {".jsonl": 1, ".parquet": 1, ".csv": 2}
#: Prefix of a path that ``datasets`` loads: ``datasets:NAME:SPLIT`` or ``datasets:NAME:SUBSET:SPLIT``.
DATASETS = "datasets:"
NAMED = re.compile(f"{DATASETS}[^:]+(:[^:]+)?:[^:]+")


class RecordTask(TextTask):
    """Questions and answers of a file, one record each.

    name: label for people and folders. path: a file of JSON lines, Parquet or CSV anywhere that fsspec reads; or
    ``datasets:NAME:SPLIT`` or ``datasets:NAME:SUBSET:SPLIT`` for a data set that ``datasets`` loads. Every machine has
    to reach it. A relative path starts from a folder of sys.path, because your modules are found there as well.
    prompt, answer, role, cell, template: names of columns. Without a column of roles all records are ``id``. Without a
    column of cells each role is one cell. With a column of templates, such as subjects, results are also grouped by it.
    verifier: ``exact``; ``math`` (math-verify: equal values in any notation); ``final`` (the text after ``####``, as in
    GSM8K); or the import path of a function of the gold answer and the written one. digest: SHA-256 of the file, filled
    in, so that a study notices a changed file.
    """

    fields_added_later: ClassVar[frozenset[str]] = TextTask.fields_added_later | {"template"}
    kind: Literal["records"] = "records"
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    path: str
    prompt: str = "prompt"
    answer: str = "answer"
    role: str | None = None
    cell: str | None = None
    template: str | None = None
    verifier: str = "exact"
    digest: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_digest(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("path"), str) and not values.get("digest"):
            return {**values, "digest": _digest(_content(values["path"]))}
        return values

    @model_validator(mode="after")
    def _verified(self) -> Self:
        if ":" not in self.verifier and self.verifier not in VERIFIERS:
            raise ValueError(not_among("verifier", self.verifier, (*VERIFIERS, "module:function of your own")))
        return self

    @property
    def label(self) -> str:
        return self.name

    @property
    def unique(self) -> bool:
        return self.verifier == "exact" and super().unique

    def cells(self, role: str) -> tuple[str, ...]:
        return tuple(name for name, (of_role, _) in self._cells.items() if of_role == role)

    def question(self, cell: str, number: int) -> Question:
        """See ``TextTask.question``."""
        _, questions = self._cells[cell]
        return questions[number % len(questions)]

    def right(self, gold: str, written: str) -> bool:
        """See ``TextTask.right``. Call the verifier. Raises ValueError, with both answers, if the verifier fails."""
        verifier = self._verifier
        try:
            return bool(verifier(gold, written))
        except Exception as error:
            raise ValueError(
                f"the verifier {self.verifier} fails on the answer {written!r} where {gold!r} is right: "
                f"{located(error)}"
            ) from error

    @cached_property
    def _verifier(self) -> Callable[[str, str], bool]:
        if self.verifier in VERIFIERS:
            return VERIFIERS[self.verifier]
        return imported(self.verifier, "verifier")

    @cached_property
    def _cells(self) -> dict[str, tuple[str, list[Question]]]:
        content = _content(self.path)
        if (found := _digest(content)) != self.digest:
            raise ValueError(
                f"the content of path={self.path!r} has changed (SHA-256 {found[:12]}, it was {self.digest[:12]}); "
                "restore the file, or leave digest out to start anew from what it holds"
            )
        columns = (self.prompt, self.answer, self.role, self.cell, self.template)
        return _questions(self.path, self.digest, columns)

    def _probed(self, cell: str) -> list[Question]:
        """Return all questions of a cell, because there are finitely many."""
        return self._cells[cell][1]


@lru_cache(maxsize=8)
def _content(path: str) -> bytes:
    """Return the content of a file. Raises ValueError if it can't be read."""
    if _suffix(path) not in READERS:
        raise ValueError(f"path={path!r} should end with {', '.join(READERS)}, or be {DATASETS}NAME:SPLIT")
    if path.startswith(DATASETS) and not NAMED.fullmatch(path):
        raise ValueError(f"path={path!r} should be {DATASETS}NAME:SPLIT or {DATASETS}NAME:SUBSET:SPLIT")
    try:
        if path.startswith(DATASETS):
            return _loaded(path)
        with fsspec.open(sources.here(path), "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # each filesystem has its own errors
        raise ValueError(f"path={path!r} cannot be read: {one_line(located(error))}") from error


def _suffix(path: str) -> str:
    """Return the suffix that tells the format of a path's table."""
    return ".jsonl" if path.startswith(DATASETS) else Path(path).suffix


def _loaded(path: str) -> bytes:
    """Return the records of a data set as JSON lines. Raises ValueError if ``datasets`` is not installed."""
    if find_spec("datasets") is None:
        raise ValueError('the package datasets is not installed; run: pip install "rayexp[datasets]"')
    import datasets

    name, *subset, split = path.removeprefix(DATASETS).split(":")
    datasets.disable_progress_bars()
    file = io.BytesIO()
    datasets.load_dataset(sources.here(name), *subset, split=split).to_json(file)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=8)
def _questions(
    path: str, digest: str, columns: tuple[str, str, str | None, str | None, str | None]
) -> dict[str, tuple[str, list[Question]]]:
    """Return the role and the questions of each cell. Raises ValueError, with the line, on an unusable record."""
    records, prompt, answer, role, cell, template = _read(path), *columns
    for field, column in zip(("prompt", "answer", "role", "cell", "template"), columns, strict=True):
        if column is not None and column not in records:
            raise ValueError(
                f"{field}={column!r} is not a column of {path}; its columns are {', '.join(records.columns)}"
            )
    cells: dict[str, tuple[str, list[Question]]] = {}
    seen: dict[str, tuple[str, str]] = {}
    for line, record in enumerate(records.to_dict("records"), start=FIRST_LINE[_suffix(path)]):
        where = f"line {line} of {path}"
        asked, answered = (_text(record[column], column, where) for column in (prompt, answer))
        its_role = "id" if role is None else str(record[role])
        if its_role not in ROLES:
            raise ValueError(f"in {where} {not_among(str(role), its_role, ROLES)}")
        its_cell = its_role if cell is None else _text(record[cell], cell, where)
        there, questions = cells.setdefault(its_cell, (its_role, []))
        if there != its_role:
            raise ValueError(
                f"{cell}={its_cell!r} has the role {its_role} in {where} and {there} before; give a cell one role"
            )
        home, line_of_it = seen.setdefault(asked, (its_cell, where))
        if home != its_cell:
            raise ValueError(f"{where} repeats the question of {line_of_it}, in the cell {home}; leave one out")
        if line_of_it == where:
            made_from = "" if template is None else _text(record[template], template, where)
            questions.append(Question(asked, answered, made_from))
    return cells


def _read(path: str) -> pd.DataFrame:
    suffix = _suffix(path)
    try:
        return READERS[suffix](io.BytesIO(_content(path)))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"path={path!r} cannot be read as {suffix} ({error}); give a table with one row a record"
        ) from error


def _text(value: Any, column: str, where: str) -> str:
    """Return a value as text. Raises ValueError if it is empty."""
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        raise ValueError(f"{column} is empty in {where}; fill in a text or a number")
    return text
