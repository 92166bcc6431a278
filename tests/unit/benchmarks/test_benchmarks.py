"""The page into which the benchmarks write their tables."""

from dataclasses import replace

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.measure import Row
from benchmarks.step import CASES, CONDITIONS, OF_TRACES, conditions_of

PAGE = "before\n<!-- sync -->\n<!-- end of sync -->\nafter\n"


def test_each_kind_of_machine_keeps_its_table(monkeypatch):
    page = PAGE
    for machine, ratio in (("Intel", "1.1"), ("AMD", "1.2"), ("Intel", "1.3")):
        monkeypatch.setattr(benchmarks, "processor", lambda machine=machine: machine)
        page = benchmarks.with_table(page, "sync", [Row("tiny", "1 ms", ratio=ratio)])
    assert [line.split(" cores of ")[1].split(",")[0] for line in page.splitlines() if " cores of " in line] == [
        "AMD",
        "Intel",
    ]
    assert ["1.1" in page, "1.2" in page, "1.3" in page] == [False, True, True]
    assert page.startswith("before\n<!-- sync -->\n")
    assert page.endswith("\n<!-- end of sync -->\nafter\n")


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="no place for the benchmark step"):
        benchmarks.with_table(PAGE, "step", [])


@pytest.mark.parametrize(("traces", "conditions"), [(False, CONDITIONS), (True, OF_TRACES)])
def test_what_is_measured_beside_the_control_differs_from_it(traces, conditions):
    specs = conditions_of(replace(CASES[0], traces=traces), conditions)
    assert list(specs) == ["control", *conditions]
    assert len({spec.id for spec in specs.values()}) == len(specs)
