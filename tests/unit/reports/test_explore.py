"""Interactive charts: they hold the figures' numbers, and are valid Vega-Lite."""

import json
from typing import Any

import pandas as pd
import pytest
import vl_convert

from rayexp.reports import explore, pictures
from rayexp.reports.explore import POINTS, script, specification
from rayexp.reports.figures import FIGURES
from tests.fixtures.simulated_study import simulated_results

RESULTS = simulated_results(ood_ratios=(0.0, 0.01, 0.05), kl_betas=(0.1, 1.0), seeds=(0, 1))
EXPLORED = {title: figure for title, figure in FIGURES["results"].items() if figure.explore}


def chart_of(title: str, results: pd.DataFrame = RESULTS) -> tuple[pd.DataFrame, dict[str, Any]]:
    draw, explore = EXPLORED[title]
    drawing = draw(results)
    assert drawing
    assert explore
    return drawing.data, specification(drawing.data, explore)


def points(chart) -> list[dict]:
    (data,) = chart["datasets"].values() if "datasets" in chart else [chart["data"]["values"]]
    return data


def menus(chart) -> dict[str, list[str]]:
    return {one["name"]: one["bind"]["options"] for one in chart["params"] if "options" in one.get("bind", "")}


@pytest.mark.parametrize("title", EXPLORED)
def test_vega_draws_it(title: str) -> None:
    other = RESULTS.assign(
        condition="layers = 16", stage_id=RESULTS["stage_id"] + "b", init_id=RESULTS["init_id"] + "b"
    )
    _, chart = chart_of(title, pd.concat([RESULTS.assign(condition="layers = 4"), other], ignore_index=True))
    chart["width"] = 400  # in place of the width of a page
    drawn = vl_convert.vegalite_to_svg(chart, vl_version="6.4")
    assert drawn.count("<path") > 10
    assert "NaN" not in drawn


def test_it_holds_the_numbers_of_the_figure() -> None:
    data, chart = chart_of("Correct mass before and after GRPO")
    rows = points(chart)
    assert len(rows) == len(data) + data["gain"].notna().sum()  # the rows of both y in turn
    masses = [row["y"] for row in rows if row["show"] == "mean correct mass"]
    assert masses == [float(f"{q:.4g}") for q in data["q"]]
    assert {row["colour"] for row in rows} == {"before GRPO", "β = 0.1", "β = 1"}
    assert {row["x"] for row in rows} == {"0", "1", "5"}


def test_a_menu_is_there_where_there_is_something_to_pick() -> None:
    on_id = RESULTS.assign(prompt_role=RESULTS["prompt_role"].mask(RESULTS["prompt_role"] == "ood", "id"))
    _, one = chart_of("Correct mass before and after GRPO")
    _, two = chart_of("Correct mass before and after GRPO", pd.concat([on_id, RESULTS]))
    assert list(menus(one)) == ["picked_show"]
    assert list(menus(two)) == ["picked_show", "picked_arm"]
    assert menus(two)["picked_arm"] == ["OOD prompts: OOD cells", "ID prompts: OOD cells", "ID prompts: ID cells"]


def test_of_many_points_each_menu_and_colour_keeps_some() -> None:
    many = simulated_results(ood_ratios=(0.0, 0.01, 0.05), kl_betas=(0.1, 1.0), seeds=tuple(range(20)))
    data, chart = chart_of("Each prompt after GRPO against before", many)
    assert len(points(chart)) <= POINTS
    kept = {(row["kl_beta"], row["arm_cell"], row["colour"]) for row in points(chart)}
    assert len(kept) == len(data[["kl_beta", "cell", "ood_ratio"]].drop_duplicates())


def test_a_page_has_as_many_charts_as_can_be_sent() -> None:
    charts = [
        pictures.Picture("small", svg="", chart={"a": 1}),
        pictures.Picture("large", svg="<svg>", chart={"a": "x" * 99}),
    ]
    small, large, again = pictures.within([*charts, charts[0]], len("<svg>") + len(json.dumps({"a": 1})) * 2)
    assert small.chart == again.chart == {"a": 1}
    assert large.chart is None
    assert large.unexplored == "the page would be too large"


def test_a_page_without_its_script_has_no_charts_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("no bundle")

    monkeypatch.setattr(explore, "script", broken)
    figures = [pictures.Picture("drawn", svg="<svg>", chart={"a": 1}), pictures.Picture("plain", svg="<svg>")]
    (drawn, plain), script = pictures.scripted(figures)
    assert script == ""
    assert (drawn.chart, drawn.unexplored, drawn.svg) == (None, "RuntimeError: no bundle", "<svg>")
    assert plain == figures[1]


def test_the_script_can_stand_in_a_page() -> None:
    assert "</script" not in script()
    assert len(script()) < 1_200_000
