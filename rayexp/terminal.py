"""Text on a terminal: command lines, refusals, tables and durations."""

import contextlib
import dataclasses
import io
import itertools
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from rayexp.errors import did_you_mean
from rayexp.formatting import one_line

T = TypeVar("T")

FLAGS: Any = tyro.conf.FlagCreatePairsOff
_RULE = re.compile("[─-]{20,}").fullmatch
#: Defaults that an option's help does not name.
_EMPTY = ("", "''", "None", "False")
#: Smallest width to which a column is cut. If the table is still too wide, the terminal wraps.
NARROWEST = 16


def parse_args(form: Any, arguments: list[str] | None, **about: Any) -> Any:
    """Parse the command line as a ``form``. An option with several values may be repeated, and its values may be
    separated by commas.

    Raises ValueError with one sentence instead of tyro's box of several lines, and ValidationError on a value that a
    pydantic model of the form refuses.
    """
    words = joined(sys.argv[1:] if arguments is None else arguments, _lists(form))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(form, args=words, config=(FLAGS,), registry=_help_registry(), **about)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        if invalid := _validation_error(end):
            raise invalid from None
        raise ValueError(_sentence(said.getvalue())) from None


def _help_registry() -> ConstructorRegistry:
    """Return what makes tyro print each option's docstring as one paragraph, because it keeps the line breaks of those
    that are indented; and no default where that is empty."""
    registry, within = ConstructorRegistry(), set[Any]()

    @registry.struct_rule
    def in_paragraphs(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type in within:  # tyro's own rules make the form
            return None
        within.add(info.type)
        found = registry.get_struct_spec(info)
        within.remove(info.type)
        if not isinstance(found, StructConstructorSpec):
            return None
        return dataclasses.replace(found, fields=tuple(map(_in_a_paragraph, found.fields)))

    return registry


def _in_a_paragraph(field: StructFieldSpec) -> StructFieldSpec:
    def text() -> str | None:
        found = field.helptext() if callable(field.helptext) else field.helptext
        return found and " ".join(found.split())

    bare, *own = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
    hint = tyro.conf.arg(
        help_behavior_hint=lambda default: f"(default: {default})" * (default not in _EMPTY),
        metavar=_metavar(bare),
    )
    return dataclasses.replace(field, helptext=text, type=Annotated[bare, hint, *own])  # the last prevails


def _metavar(of: Any) -> str | None:
    """Return the name of a value that may be left out, without tyro's ``{None}``; None for all other values."""
    optional = get_origin(of) in (Union, UnionType) and NoneType in get_args(of)
    others = [each for each in get_args(of) if each is not NoneType]
    return getattr(others[0], "__name__", "value").upper() if optional and len(others) == 1 else None


def _validation_error(error: BaseException) -> ValidationError | None:
    """Return the ValidationError that caused an exception, if one did."""
    inner = error.__cause__ or error.__context__
    return error if isinstance(error, ValidationError) else inner and _validation_error(inner)


def _sentence(box: str) -> str:
    """Return the sentence in tyro's box, which has a title, the sentence, a rule and advice, in colour or in ASCII."""
    lines = [line.strip("│| ") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:]]
    lines = list(itertools.dropwhile(_RULE, lines))
    sentence = " ".join(itertools.takewhile(lambda line: not _RULE(line), lines)).rstrip(".")
    meant = ""
    if choice := re.match(r"invalid choice '(.*?)' .* Expected one of \((.*)\)", sentence):
        meant = did_you_mean(choice[1], re.findall(r"'(.*?)'", choice[2]))
    option = re.search(r"Perhaps you meant:\s+(--[\w-]+)", "\n".join(lines))
    if option and option[1] not in sentence.split():  # the same, if it stands before its command
        meant = f"; did you mean {option[1]}?"
    return f"{sentence}; --help lists what is allowed{meant}"


def joined(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """Return a command line with each option of ``lists`` once, at the end, with all its values. Raises ValueError if
    an option has no value."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    found: list[str] | None = None
    for word in words:
        if word.startswith("--") or word == "-h":
            option, _, value = word.partition("=")
            name = option.replace("_", "-")
            found = values.setdefault(name, []) if name in lists else None
            word = word if found is None else value
        if found is None:
            others.append(word)
        else:
            found += [word] if "=" in word else word.replace(",", " ").split()  # a value may contain commas
    if empty := [name for name, parts in values.items() if not parts]:
        raise ValueError(f"the option {empty[0]} has no value; give one or more, separated by blanks or commas")
    return [*others, *itertools.chain.from_iterable([name, *parts] for name, parts in values.items())]


def _lists(form: Any) -> set[str]:
    """Return the options of a form, or of a union's forms, that take any number of values."""
    if not (isinstance(form, type) and (dataclasses.is_dataclass(form) or issubclass(form, BaseModel))):
        return set().union(*map(_lists, get_args(form)))
    hints = get_type_hints(form)
    own = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if get_origin(hint) is tuple}
    return own.union(*map(_lists, hints.values()))


def exit_with_error(*why: str) -> int:
    """Print the reasons of a refusal, one a line, and return its exit code."""
    return tell("refused", *why, code=2)


def tell(what: str, *why: str, code: int) -> int:
    """Print to standard error why a command ended, one reason a line, and return ``code``."""
    print(f"{what}:", "\n".join(map(one_line, why)), file=sys.stderr)
    return code


@dataclass(frozen=True)
class Column:
    """One column of a table. If a terminal is too narrow, ``spare`` columns are left out, the last one first. Then
    texts in ``cut`` columns are shortened."""

    name: str
    right: bool = False
    spare: bool = False
    cut: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """Return rows as aligned text, with lines of at most ``width`` characters if possible."""
    cells = [[column.name for column in columns], *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    shown = list(range(len(columns)))

    def too_wide() -> bool:
        return width is not None and sum(widths[i] + 2 for i in shown) - 2 > width

    while too_wide() and (spare := [i for i in shown if columns[i].spare]):
        shown.remove(spare[-1])
    while too_wide() and (cut := [i for i in shown if columns[i].cut and widths[i] > NARROWEST]):
        widths[max(cut, key=lambda i: widths[i])] -= 1
    aligned = [f"{'>' if column.right else '<'}{width}" for column, width in zip(columns, widths, strict=True)]
    lines = ("  ".join(f"{shortened(row[i], widths[i]):{aligned[i]}}" for i in shown) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def terminal_width() -> int | None:
    """Return the width of the terminal; None if the output goes elsewhere, where width is unlimited."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def shortened(text: str, length: int) -> str:
    """Shorten a text to at most ``length`` characters. Cut out its middle, because the ends of texts differ most."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def abbreviated(ids: Sequence[str], digits: int = 8) -> dict[str, str]:
    """Return prefixes of stage ids, by id: enough digits to tell all apart, and at least ``digits``."""
    while True:
        short = {stage_id: stage_id[: stage_id.find("-") + 1 + digits] for stage_id in ids}
        if len(set(short.values())) == len(short):
            return short
        digits += 1


def duration(seconds: float) -> str:
    """Return seconds as text for people: ``<0.1 s``, ``24 s``, ``12 min``, ``3.2 h``, ``4.1 d``, ``27 y``."""
    if 0 < seconds < 0.05:
        return "<0.1 s"
    for limit, unit_s, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"), (63_115_200, 86_400, "d")):
        if seconds < limit:
            return f"{_two_digits(seconds / unit_s)} {unit}"
    return f"{_two_digits(seconds / 31_557_600)} y"


def _two_digits(number: float) -> str:
    return f"{number:.1f}" if 0 < number < 9.95 and f"{number:.1f}" != f"{number:.0f}.0" else f"{number:.0f}"
