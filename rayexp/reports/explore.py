"""Interactive charts: the data of a figure as a chart of Vega-Lite.

The panels of the drawn figure are chosen from menus, one at a time; colours are switched on and off in the legend;
pointing at a mark shows its values. There are four kinds of charts, and each figure names its kind in
``drawing.on_page``. The script is ``explore.js`` with the libraries in vl-convert, so a page needs no network.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import altair as alt
import pandas as pd
import vl_convert
from matplotlib.colors import to_hex

from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, percent
from rayexp.reports.checks import REFUTED, SUPPORTED
from rayexp.reports.drawing import COLOURS, Explore, ratio_colours

#: Largest number of points in a scatter plot; of more, each menu and colour keeps an equal share.
POINTS = 3000
#: Significant digits of a number in a chart: nobody sees more, and a page is sent by mail.
DIGITS = 4
#: Pixels.
HEIGHT, TEXT = 320, 12
#: Titles of columns; the others are shown under their own names.
TITLES = {
    "prompt_role": "GRPO's prompts",
    "arm": "GRPO on",
    "arm_cell": "GRPO on",
    "kl_beta": "β",
    "ood_ratio": "OOD samples in pretraining (%)",
    "q": "mean correct mass",
    "drawn_q": "mean correct mass before GRPO",
    "gain": "gain: mean after - before",
    "greedy": "greedy accuracy",
    "value": "effect on the gain",
    "worth": "copied items - their controls",
    "k": "k, completions drawn",
    "step": "GRPO step",
    "n_seeds": "seeds",
    "n": "prompts of all seeds",
    "prompt_index": "number of the prompt",
}
#: Columns that hold settings, as a menu or a point names them.
SETTINGS = ("condition", "prompt_role", "role", "place", "ood_ratio", "kl_beta", "metric", "stage", "cell")
#: GRPO's prompts with the cells that are shown, as not every role of the one goes with every role of the other.
ARM, ARM_CELL = "arm", "arm_cell"
#: Of which one value is shown at a time, where a figure has several.
PICKS = ("condition", ARM)
#: What a point tells besides its place and colour, where its figure has that.
TOLD = ("n_seeds", "seeds", "n", "seed", "cell", "prompt_index")
#: Fields of a chart's data.
X, Y, LOW, HIGH, COLOUR, THEORY, SHOW = "x", "y", "low", "high", "colour", "theory", "show"
#: Ticks of an axis of logits, at the logits of 1e-12 to 0.9999, and their labels.
LOGITS = alt.Axis(values=[-27.6, -18.4, -9.2, -4.6, 0, 4.6, 9.2], labelExpr="format(1/(1+exp(-datum.value)), '.2~g')")
GREY = "#808080"

#: A figure of a page, with its chart in JSON. The JSON has no tags, because the page escapes every <.
_FIGURE = re.compile(
    r'<figure id="(figure-\d+)">(?:(?!</figure>).)*?<script type="application/json">(.*?)</script>', re.DOTALL
)
#: A page of one figure, with all elements that the script needs.
_ALONE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px system-ui, sans-serif; margin: 8px; }}
figure {{ margin: 0; }} .chart {{ width: 100%; }}</style>
</head><body><figure id="figure-1"><button hidden></button>
<div class="chart" hidden></div><p class="chart-help" hidden>{help}</p>
<script type="application/json">{chart}</script></figure>
<script>{script}</script></body></html>
"""
HELP = "Point at a mark for its values. Click a name in the legend to see it alone, with Shift pressed to see several."

Layers = alt.LayerChart | alt.FacetChart


def over_ratios(*ys: str, colour: str = "kl_beta") -> Explore:
    """Return a function that draws means with intervals against the OOD ratio. ys: one of them is shown at a time."""

    def chart(data: pd.DataFrame) -> Layers:
        rows = pd.concat([_rows(data, "ood_ratio", y, colour, (f"{y}_low", f"{y}_high")) for y in ys])
        ratios = [percent(ratio) for ratio in sorted(data["ood_ratio"].unique())]
        x = alt.X(X, type="ordinal", sort=ratios, title=title("ood_ratio")).axis(labelAngle=0).scale(paddingInner=0.8)
        base = _base(rows, (SHOW, *PICKS)).encode(x=x, xOffset=alt.XOffset(COLOUR, type="nominal"), y=_number(Y))
        bars = base.mark_rule().encode(y=_number(LOW), y2=HIGH)
        points = base.mark_point(filled=True, size=60).encode(tooltip=_tips(rows, "ood_ratio", "mean", colour))
        return _layered(*_switched(rows, colour, bars, base.mark_line(), points))

    return chart


def over_numbers(
    x: str, y: str, colour: str, picks: Sequence[str], scale: Literal["linear", "log"] = "linear"
) -> Explore:
    """Return a function that draws lines against a number, in bands from the lowest to the highest seed."""

    def chart(data: pd.DataFrame) -> Layers:
        rows = _rows(data, x, y, colour, ("lowest", "highest"))
        base = _base(rows, picks).encode(x=_number(X, title(x)).scale(type=scale), y=_number(Y, "mean over seeds"))
        band = base.mark_area(fillOpacity=0.15).encode(y=_number(LOW), y2=HIGH)
        points = base.mark_point(filled=True, size=25).encode(tooltip=_tips(rows, x, "mean", colour))
        return _layered(*_switched(rows, colour, band, base.mark_line(), points))

    return chart


def over_mass(y: str, y_title: str, theory: str, picks: Sequence[str], logits: bool) -> Explore:
    """Return a function that draws a scatter plot against the mass before GRPO, on logits, coloured by the OOD ratio.

    theory: the column of the grey dots. logits: y and theory are probabilities, and drawn on logits as well.
    """

    def chart(data: pd.DataFrame) -> Layers:
        rows = _rows(data.assign(**{THEORY: data[theory]}), "q", y, "ood_ratio", None)
        groups = rows.groupby([*picks, COLOUR], sort=False, observed=True)
        rows = groups.head(max(1, POINTS // groups.ngroups))
        on_logits = {field: f"log(datum.{field} / (1 - datum.{field}))" for field in (X, *(Y, THEORY) * logits)}
        base = _base(rows, picks).transform_calculate(**{f"logit_{field}": of for field, of in on_logits.items()})

        def place(field: str, name: str) -> dict[str, Any]:
            if field not in on_logits:
                return {"shorthand": field, "type": "quantitative", "title": name}
            return {"shorthand": f"logit_{field}", "type": "quantitative", "title": name, "axis": LOGITS}

        base = base.encode(x=alt.X(**place(X, "correct mass before GRPO")))
        expected = base.mark_point(size=8, color=GREY, opacity=0.6).encode(y=alt.Y(**place(THEORY, y_title)))
        points = base.mark_point(filled=True, size=22).encode(
            y=alt.Y(**place(Y, y_title)), tooltip=_tips(rows, "correct mass before", y_title, "ood_ratio")
        )
        return _layered(expected, *_switched(rows, "ood_ratio", points))

    return chart


def forest(x: str, y: str, colour: str, picks: Sequence[str]) -> Explore:
    """Return a function that draws a row for each name in y: x, and the interval from ``low`` to ``high``."""

    def chart(data: pd.DataFrame) -> Layers:
        rows = _rows(data, x, y, colour, (LOW, HIGH))
        names = alt.Y(Y, type="nominal", sort=rows[Y].drop_duplicates().tolist(), title=None).axis(labelLimit=160)
        base = _base(rows, picks).encode(x=_number(X, title(x)), y=names)
        bars = base.mark_rule().encode(x=_number(LOW, title(x)), x2=HIGH)
        points = base.mark_point(filled=True, size=60).encode(tooltip=_tips(rows, title(x), y, colour))
        return _layered(*_switched(rows, colour, bars, points), height=alt.Step(22))

    return chart


def specification(data: pd.DataFrame, explore: Explore) -> dict[str, Any]:
    """Return the chart of a figure in Vega-Lite, with its data."""
    chart = explore(data).properties(width="container")
    chart = chart.configure(font="system-ui, sans-serif", background="transparent")
    chart = chart.configure_axis(labelFontSize=TEXT, titleFontSize=TEXT)
    return chart.configure_legend(labelFontSize=TEXT, titleFontSize=TEXT).to_dict()


@cache
def script() -> str:
    """Return the script of a page, with its libraries."""
    return vl_convert.javascript_bundle((files("rayexp.reports") / "explore.js").read_text())


def charts(page: str) -> dict[str, str]:
    """Return the charts of a report's page in JSON, by the names of their figures, as ``figure-1``."""
    return {found[1]: found[2] for found in _FIGURE.finditer(page)}


def alone(chart: str, name: str) -> str:
    """Return a page of one chart of ``charts``, which needs no network."""
    return _ALONE.format(title=name, help=HELP, chart=chart, script=script())


def title(column: str) -> str:
    """Return the title of a column."""
    return TITLES.get(column, column.replace("_", " "))


def _rows(data: pd.DataFrame, x: str, y: str, colour: str, ends: tuple[str, str] | None) -> pd.DataFrame:
    """Return data with the fields of a chart, and with readable settings."""
    named = data.assign(**{column: _names(data[column]) for column in SETTINGS if column in data})
    for arm, cells, noun in ((ARM, "role", " cells"), (ARM_CELL, "cell", "")):
        if "prompt_role" in data and cells in data:
            names = named["prompt_role"].astype(str) + " prompts: " + named[cells].astype(str) + noun
            asked_for = names[data["prompt_role"] != "id"]  # comes first
            named[arm] = pd.Categorical(names, pd.concat([asked_for, names]).drop_duplicates().tolist())
    places = {X: (named if x in SETTINGS else data)[x], Y: data[y], SHOW: title(y), COLOUR: named[colour]}
    interval = dict(zip((LOW, HIGH), (data[end] for end in ends), strict=True)) if ends else {}
    return named.assign(**places, **interval).dropna(subset=[X, Y])


def _names(values: pd.Series) -> pd.Series:
    """Return the values of a setting as readable categories, in the order of menus and legends."""
    found = values.drop_duplicates().tolist()
    if values.name == "ood_ratio":
        names = {ratio: percent(ratio) for ratio in sorted(found)}
    elif values.name == "kl_beta":
        names = {None: "before GRPO"} | {beta: f"β = {number(beta)}" for beta in sorted(values.dropna().unique())}
    elif values.name in ("prompt_role", "role"):
        names = {role: ROLE_NAMES.get(role, "none") for role in found}
    else:
        names = {value: str(value) for value in found}
    named = [names[None] if pd.isna(value) else names[value] for value in values]
    return pd.Series(pd.Categorical(named, list(names.values())), index=values.index)


def _base(rows: pd.DataFrame, picks: Sequence[str]) -> alt.Chart:
    """Return a chart of rows, with a menu for every column that has several values."""
    picks = [column for column in picks if rows[column].nunique() > 1]
    fields = dict.fromkeys((X, Y, LOW, HIGH, THEORY, COLOUR, *picks, *TOLD))
    chart = alt.Chart(alt.Data(values=list(_records(rows[[field for field in fields if field in rows]]))))
    for column in picks:
        options = rows[column].drop_duplicates().tolist()
        if isinstance(rows[column].dtype, pd.CategoricalDtype):
            options = [name for name in rows[column].cat.categories if name in options]
        menu = alt.binding_select(options=options, name=f"{title(column)} ")
        picked = alt.param(name=f"picked_{column}", value=options[0], bind=menu)
        chart = chart.add_params(picked).transform_filter(f"datum['{column}'] == {picked.name}")
    return chart


def _records(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Return rows for JSON, numbers with ``DIGITS``."""
    for row in rows.to_dict("records"):
        yield {
            str(name): float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
            for name, value in row.items()
            if pd.notna(value)
        }


def _number(field: str, name: str | None = None) -> Any:
    kind = alt.X if field == X else alt.Y
    return kind(field, type="quantitative", title=name)


def _tips(rows: pd.DataFrame, x: str, y: str, colour: str) -> list[alt.Tooltip]:
    """Return the tooltips of a point. x, y, colour: their titles or columns."""
    names = {COLOUR: colour, X: x, Y: y, LOW: "from", HIGH: "to", **{column: column for column in TOLD}}
    return [
        alt.Tooltip(field, title=title(name), type="quantitative", format=".4~g")
        if pd.api.types.is_numeric_dtype(rows[field])
        else alt.Tooltip(field, title=title(name), type="nominal")
        for field, name in names.items()
        if field in rows
    ]


def _layered(*marks: alt.Chart, height: Any = HEIGHT) -> Layers:
    """Return marks as layers of one chart."""
    chart = alt.layer(*marks)
    chart.height = height
    return chart


def _switched(rows: pd.DataFrame, colour: str, *marks: alt.Chart) -> list[alt.Chart]:
    """Return marks, the last of them points, with colours that the legend switches on and off."""
    colours = _colours(rows[COLOUR], colour)
    legend = alt.Legend(orient="top", columns=4, labelLimit=200, titleLimit=300, symbolType="circle")
    coloured = alt.Color(COLOUR, type="nominal", title=None if colour == "kl_beta" else title(colour), legend=legend)
    coloured = coloured.scale(domain=list(colours), range=list(colours.values()))
    switch = alt.selection_point(name="switched", fields=[COLOUR], bind="legend")
    opacity = alt.when(switch).then(alt.value(1.0)).otherwise(alt.value(0.04))
    *others, last = [mark.encode(color=coloured, opacity=opacity) for mark in marks]
    return [*others, last.add_params(switch)]


def _colours(names: pd.Series, colour: str) -> dict[str, str]:
    """Return the colour of each name, in the order of the legend: as in the drawn figure."""
    found = [name for name in names.cat.categories if (names == name).any()]
    if colour == "ood_ratio":
        shades = [to_hex(shade) for shade in ratio_colours(len(found))]
    elif colour == "verdict":
        shades = [{SUPPORTED: COLOURS[2], REFUTED: COLOURS[1]}.get(name, GREY) for name in found]
    else:
        shades = [*[GREY] * (colour == "stage"), "#000000", *COLOURS]
    return {name: shades[place % len(shades)] for place, name in enumerate(found)}
