"""Questions of reasoning-gym, a package of generators. Any generator whose questions have one right answer works."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rayexp.config import Value
from rayexp.errors import not_among
from rayexp.tasks.text.base import Question, TextTask

INSTALL = 'pip install "rayexp[gym]"'
#: Settings of the axis of paths: two arms, and nodes of at most two digits.
PATHS = {"degree": 2, "node_range": 50, "reversed": True}


class Level(Value):
    """A cell: a generator with some settings. name: of the cell. settings: those that differ from the generator's
    defaults."""

    name: str
    role: Literal["id", "ood", "probe"]
    settings: dict[str, bool | int | float | str] = {}


def _pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"keep={value!r} is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"keep={value!r} has {groups} groups; give it one, around what to keep of a question")
    return value


class OfRelease(TextTask):
    """Questions that reasoning-gym writes. release: the installed version, filled in, because another one may write
    other questions."""

    release: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_release(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("release"):
            return {**values, "release": _installed()}
        return values

    def require_release(self) -> None:
        """Raise ValueError if reasoning-gym is not installed, or has another release."""
        if not (installed := _installed()):
            raise ValueError(f"the task {self.label} needs reasoning-gym, which is not installed; run: {INSTALL}")
        if installed != self.release:
            raise ValueError(
                f"release={self.release!r}, but reasoning-gym {installed} is installed, which may write other "
                f"questions; install {self.release or 'that'}, or leave release out to start anew"
            )


class GymTask(OfRelease):
    """Questions of one generator of reasoning-gym, in cells of different settings.

    name: label for people and folders. generator: name in reasoning-gym. keep: a regular expression whose group selects
    the part of a question to keep, because generators add instructions that a decoder from scratch can't read.
    """

    kind: Literal["gym"] = "gym"
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    generator: str
    keep: Annotated[str, AfterValidator(_pattern)] = "(?s)(.*)"
    levels: Annotated[
        tuple[Level, ...], Field(strict=False)
    ]  # not strict, because JSON and the validator that fills in the release give lists

    @model_validator(mode="after")
    def _made(self) -> Self:
        names = [level.name for level in self.levels]
        if not self.cells("id"):
            raise ValueError("levels has none with role='id'; add one, because pretraining always has ID samples")
        if len(set(names)) < len(names):
            raise ValueError(f"levels should have different names, not {', '.join(names)}")
        return self

    @property
    def label(self) -> str:
        return self.name

    def cells(self, role: str) -> tuple[str, ...]:
        return tuple(level.name for level in self.levels if level.role == role)

    def question(self, cell: str, number: int) -> Question:
        """See ``TextTask.question``. Raises ValueError if nothing of the generator's question is kept."""
        item = self._generators[cell][number]
        if (kept := re.search(self.keep, item["question"])) is None:
            raise ValueError(
                f"keep={self.keep!r} matches nothing in the question {item['question']!r}; give a pattern that fits "
                "every question"
            )
        return Question(kept[1].strip(), str(item["answer"]).strip())

    @cached_property
    def _generators(self) -> dict[str, Any]:
        self.require_release()
        return {level.name: _generator(self.generator, level) for level in self.levels}


@contextmanager
def quiet_import() -> Iterator[None]:
    """Suppress warnings while the block imports reasoning-gym. They come from packages of single generators.

    The import is late, because it takes seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        yield


def _installed() -> str:
    """Return the installed release of reasoning-gym; '' if there is none."""
    return version("reasoning-gym") if find_spec("reasoning_gym") else ""


def _generator(name: str, level: Level) -> Any:
    """Return a generator, which gives questions by number. Raises ValueError on an unknown name or bad settings."""
    with quiet_import():
        from reasoning_gym.factory import DATASETS, create_dataset
    if name not in DATASETS:
        raise ValueError(not_among("generator", name, sorted(DATASETS)))
    try:
        return create_dataset(name, seed=0, **level.settings)
    except (TypeError, AssertionError, ValueError) as error:
        known = ", ".join(signature(DATASETS[name][1]).parameters)
        raise ValueError(
            f"the generator {name} refuses the settings of the level {level.name}: {error}; its settings are {known}"
        ) from error


#: Ready-made axes. Along each of them the questions get longer. Sums have terms of one digit, because two digits are
#: too hard for a tiny decoder. Paths are written from their end, because from their start the first step can't be
#: learnt from samples (arXiv 2403.06963).
AXES: dict[str, dict[str, Any]] = {
    "sums": {
        "generator": "chain_sum",
        "keep": r"problem: (.*)",
        "levels": {
            "2-3": ("id", {"min_terms": 2, "max_terms": 3, "max_digits": 1}),
            "4": ("ood", {"min_terms": 4, "max_terms": 4, "max_digits": 1}),
            "5": ("probe", {"min_terms": 5, "max_terms": 5, "max_digits": 1}),
        },
    },
    "backward": {
        "generator": "spell_backward",
        "keep": r": (\w+)$",
        "levels": {
            "3-5": ("id", {"min_word_len": 3, "max_word_len": 5}),
            "6": ("ood", {"min_word_len": 6, "max_word_len": 6}),
            "7": ("probe", {"min_word_len": 7, "max_word_len": 7}),
        },
    },
    "paths": {
        "generator": "path_star",
        "keep": r"(\|[^\n]*=)\s*$",
        "levels": {
            str(length): (role, {"min_path_length": length, "max_path_length": length, **PATHS})
            for length, role in ((3, "id"), (4, "ood"), (5, "probe"))
        },
    },
}


def axis(name: str) -> GymTask:
    """Return the task of one of ``AXES``."""
    settings = AXES[name]
    levels = tuple(Level(name=level, role=role, settings=each) for level, (role, each) in settings["levels"].items())
    return GymTask(name=name, generator=settings["generator"], keep=settings["keep"], levels=levels)
