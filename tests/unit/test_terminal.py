"""Tables, quantities and names for people."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

from rayexp.terminal import Column, abbreviated, duration, parse_args, shortened, table

COLUMNS = (Column("id"), Column("n", right=True), Column("note", spare=True), Column("label", cut=True))
ROWS = [("a", "1", "first", "x/y"), ("bcd", "22", "second one", "a-long-label/that-goes-on")]


def test_a_table_is_aligned_and_whole_where_nothing_limits_it():
    assert table(COLUMNS, ROWS).splitlines() == [
        "id    n  note        label",
        "a     1  first       x/y",
        "bcd  22  second one  a-long-label/that-goes-on",
    ]
    assert table(COLUMNS, ROWS, width=200) == table(COLUMNS, ROWS)


def test_where_a_terminal_is_narrow_spare_columns_go_and_the_last_is_shortened():
    lines = table(COLUMNS, ROWS, width=27).splitlines()
    assert lines == ["id    n  label", "a     1  x/y", "bcd  22  a-long-la…-goes-on"]
    assert max(map(len, lines)) == 27
    assert len(table(COLUMNS, ROWS, width=5).splitlines()[-1]) > 5  # too narrow for any table, so the terminal wraps


def test_what_is_not_printable_can_not_break_a_line():
    assert table(COLUMNS, [("a", "1", "x\ny", "\x1b[31mred")]).count("\n") == 1


@pytest.mark.parametrize(("length", "short"), [(9, "composing"), (8, "comp…ing"), (3, "c…g"), (1, "…")])
def test_the_middle_of_a_long_text_goes(length, short):
    assert shortened("composing", length) == short


SECONDS = {"0 s": 0, "<0.1 s": 0.01, "0.2 s": 0.23, "3 s": 3.0, "89 s": 89, "1.5 min": 90, "60 min": 3600}
HOURS = {"1.5 h": 5400, "2 d": 172_800, "3.2 y": 1e8}


@pytest.mark.parametrize(("text", "seconds"), [*SECONDS.items(), *HOURS.items()])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_ids_are_shortened_as_far_as_they_stay_apart():
    ids = ["grpo-0123456789abcdef", "grpo-0123456799abcdef", "sft-0123456789abcdef"]
    assert abbreviated(ids) == {ids[0]: "grpo-012345678", ids[1]: "grpo-012345679", ids[2]: "sft-012345678"}
    assert abbreviated(ids[1:]) == {ids[1]: "grpo-01234567", ids[2]: "sft-01234567"}
    assert abbreviated([]) == {}


@dataclass(frozen=True)
class Form:
    """A form."""

    places: tuple[str, ...] = ()
    """The first half of a sentence that is long enough to be broken in the source, and
    the other half."""
    size: int = 3
    """A number."""
    file: str | None = None
    """A file."""
    price: Annotated[float | None, tyro.conf.arg(metavar="PRICE")] = None
    """A price."""


def test_help_has_each_option_as_one_paragraph_and_no_empty_default(capsys):
    with pytest.raises(SystemExit):
        parse_args(Form, ["--help"], prog="form [SIZE]")
    lines = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("usage: form [SIZE] [-h]")
    assert "broken in the source, and the other half." in " ".join(lines)
    assert not [line for line in lines if line.endswith("and")], "the line break of the source is kept"
    assert "A number. (default: 3)" in " ".join(lines)
    assert "(default: )" not in " ".join(lines)
    assert {"--file STR A file.", "--price PRICE A price."} <= set(lines)
