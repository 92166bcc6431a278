"""The look of figures: their size, colours, axes and legends.

All are laid out in two columns of small panels, so that they can be read on a phone. Colours are those of Okabe and Ito
(2008), which colour-blind readers can tell apart, and each has a marker of its own; OOD ratios, which have an order, go
through viridis.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rayexp.formatting import number
from rayexp.reports.arms import counted, percent, title_suffix

WIDTH_INCHES = 4.4
DPI = 220
#: Characters of a title above one panel, which must not reach beyond the figure, and of one that spans both columns.
NARROW, WIDE = 24, 58
FONT_SIZE = 8.5
STYLE: dict[Any, Any] = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "black",
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.title_fontsize": FONT_SIZE,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.7,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "svg.hashsalt": "rayexp",
}

BOOTSTRAP = (
    "Bars are 95 % bootstrap intervals over seeds, then prompts; with few seeds they hardly leave the seeds' range."
)

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class LineStyle(NamedTuple):
    """The look of a series. Only series before GRPO are black, and no two series share both colour and line."""

    colour: Any
    marker: str
    line: Any


#: What a figure can show at most: panels on a page that people scroll, lines and colours that they can tell apart, and
#: OOD ratios along an axis before their labels meet. What has more stands in a table instead (``require_room``).
PANELS, LINES, PLACES = 24, 12, 24

#: Before GRPO, then the betas in ascending order, ``LINES`` of them.
LINE_STYLES: list[LineStyle] = [
    LineStyle("#000000", "o", "-"),
    *(
        LineStyle(colour, marker, line)
        for line, markers in (("-", "s^DvPX"), (":", "<>p*dH"))
        for colour, marker in zip(COLOURS, markers, strict=True)
    ),
]


@contextmanager
def plain() -> Iterator[None]:
    """Draw with matplotlib's own defaults and ``STYLE``, whatever the user's matplotlibrc says."""
    with rc_context():
        rcdefaults()
        rcParams.update(STYLE)
        yield


@dataclass(frozen=True)
class ReportFigure:
    """A figure, its caption and alternative text, and its data: one row for each point."""

    caption: str
    alt: str
    figure: Figure
    data: pd.DataFrame


class CrowdedError(Exception):
    """Data that are too many for a figure. data: those that it would have shown."""

    def __init__(self, sentence: str, data: pd.DataFrame) -> None:
        super().__init__(sentence)
        self.data = data


#: Columns by which figures are divided into panels and lines, for people.
COUNTED = {
    "condition": "conditions",
    "prompt_role": "roles of prompts",
    "role": "roles of cells",
    "kl_beta": "β",
    "ood_ratio": "OOD ratios",
    "stage": "stages",
    "panel": "conditions",
    "line": "sizes of groups",
}


def require_room(
    data: pd.DataFrame, panels: Sequence[str], lines: str, sides: int = 1, along: Sequence[str] = ()
) -> None:
    """Raise CrowdedError if a figure of these data would have too many panels, lines or places.

    panels: columns; each combination of their values has a panel, or ``sides`` of them. lines, along: columns whose
    values are the lines of a panel, and the places of its axis.
    """
    for columns, limit in ((panels, PANELS // sides), ([lines], LINES), (along, PLACES)):
        needed = len(data[[*columns]].dropna().drop_duplicates()) if all(columns) and columns else 0
        if needed > limit:
            counts = {COUNTED[column]: data[column].nunique() for column in columns}
            several = [f"{count} {name}" for name, count in counts.items() if count > 1]
            what = several[0] if len(several) == 1 else f"{needed} combinations of {' and '.join(several)}"
            raise CrowdedError(f"a figure has room for {limit} of the {what}", data)


#: A figure of a table; None where the table has no data for it.
Draw = Callable[[pd.DataFrame], ReportFigure | None]
#: Returns a chart of altair.
Explore = Callable[[pd.DataFrame], Any]


class OnPage(NamedTuple):
    """A figure of the page. explore: returns an interactive chart of its data (``reports.explore``), if it has one."""

    draw: Draw
    explore: Explore | None = None


#: All figures, by the table that they are drawn from, and then by place and title.
DRAWN: dict[str, dict[tuple[int, str], OnPage]] = {"objections": {}, "copies": {}, "results": {}, "curves": {}}


def on_page(
    title: str,
    place: int,
    of: Literal["objections", "copies", "results", "curves"] = "results",
    explore: Explore | None = None,
) -> Callable[[Draw], Draw]:
    """Return a decorator that puts a figure on the page of a report, under a title.

    place: among the figures of the same table. of: the name of the table that the figure is drawn from. explore:
    returns an interactive chart of the figure's data.
    """

    def register(draw: Draw) -> Draw:
        DRAWN[of][place, title] = OnPage(draw, explore)
        return draw

    return register


@dataclass(frozen=True)
class Series:
    """One of the lines of a panel. key: beta, or name of a stage; None is before GRPO."""

    key: Any
    name: str
    style: LineStyle

    @property
    def line(self) -> Any:
        """Return the line style of a figure without markers: dashed before GRPO."""
        return "--" if self.key is None else self.style.line


#: What is before SFT, of figures that show it.
PRETRAINED = Series("pretrain", "after pretraining", LineStyle("#777777", "", ":"))


def panels(rows: int, height: float, around: float = 0.8, columns: int = 2) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns]. height: of a row; around: room for legends; both in inches."""
    figure = Figure(figsize=(WIDTH_INCHES, rows * height + around), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def grid(count: int, height: float, around: float = 0.8) -> tuple[Figure, np.ndarray]:
    """Return ``panels`` for ``count`` similar plots, two in a row; the last place may stay empty."""
    columns = min(2, count)
    figure, axes = panels(-(-count // columns), height, around, columns)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes


def lines(title: str, width: int = NARROW) -> str:
    """Return a title, broken into lines."""
    return fill(title.replace(" = ", "\u00a0=\u00a0"), width, break_long_words=False)


def taller(conditions: pd.Series, width: int = NARROW) -> float:
    """Return the height that ``lines`` of conditions add to a row of panels, in inches."""
    return 0.15 * max(lines(title_suffix(condition), width).count("\n") + bool(condition) for condition in conditions)


def ratio_places(data: pd.DataFrame) -> dict[Any, int]:
    """Return the place of each OOD ratio on an axis where all, 0 included, are evenly spaced."""
    return {ratio: place for place, ratio in enumerate(sorted(data["ood_ratio"].unique()))}


def ratio_colours(count: int) -> list[Any]:
    """Return colours from dark to light with the ratio, without the palest quarter, which fades on white."""
    return [colormaps["viridis"](x) for x in np.linspace(0, 0.75, count)]


def ratio_axes(figure: Figure, axes: np.ndarray, ratios: dict[Any, int]) -> None:
    """Label the x axes with OOD ratios in percent."""
    labels = [percent(ratio) for ratio in ratios]
    size = FONT_SIZE if len(ratios) <= 6 else 7 if len(ratios) <= 16 else 6
    turned = 90 if len(labels) * max(map(len, labels)) > 30 else 0
    for axis in axes.flat:
        axis.set_xlim(-0.5, len(ratios) - 0.5)
        axis.set_xticks(list(ratios.values()), labels=labels, fontsize=size, rotation=turned)
    figure.supxlabel("OOD samples in pretraining (%)", fontsize=FONT_SIZE)


def before_and_betas(betas: pd.Series) -> list[Series]:
    """Return the series before GRPO, and after it with each of up to ``LINES`` betas."""
    names = {None: "before GRPO"} | {beta: f"after, β = {number(beta)}" for beta in sorted(betas.dropna().unique())}
    return [Series(key, name, style) for (key, name), style in zip(names.items(), LINE_STYLES, strict=False)]


def legend_rows(series: list[Series]) -> float:
    """Return the height of the rows of ``series_legend`` beyond two, in inches."""
    return 0.18 * max(0, -(-len(series) // 3) - 2)


def bars(axis: Axes, x: Any, points: pd.DataFrame, column: str, style: tuple[Any, str, str]) -> None:
    """Draw points at ``x`` with vertical intervals from the columns ``column``, ``column_low`` and ``column_high``."""
    mean, low, high = (points[name].to_numpy(dtype=float) for name in (column, f"{column}_low", f"{column}_high"))
    # Rounding may leave an end on the wrong side of its mean by 1e-17, which errorbar refuses.
    ends = np.maximum(0, [mean - low, high - mean])
    colour, marker, line = style
    axis.errorbar(x, mean, yerr=ends, color=colour, marker=marker, linestyle=line, elinewidth=1)


def intervals(
    axis: Axes,
    points: pd.DataFrame,
    column: str,
    ratios: dict[Any, int],
    series: Series,
    all_series: list[Series],
    open_markers: pd.Series | None = None,
) -> None:
    """Draw a line over OOD ratios with vertical intervals, moved sideways a little so that they do not overlap.

    open_markers: which of the points get an open marker; by default none.
    """
    aside = min(0.09, 0.7 / len(all_series))
    x = points["ood_ratio"].map(ratios) + aside * (all_series.index(series) - (len(all_series) - 1) / 2)
    order = x.argsort()
    bars(axis, x.iloc[order], points.iloc[order], column, series.style)
    if open_markers is not None and open_markers.any():
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": series.style.colour, "s": 18, "zorder": 3}
        axis.scatter(x[open_markers], points[column][open_markers], marker=series.style.marker, **style)


def series_legend(
    figure: Figure,
    series: list[Series],
    data: pd.DataFrame,
    spread: str = "bars: 95 % interval",
    lines_only: bool = False,
) -> None:
    """Draw the legend of the series above the panels, with the numbers of seeds and prompts.

    lines_only: without markers, with dashes before GRPO.
    """
    counts = f"{counted(data['n_seeds'], 'seed')}, {counted(data['n'] // data['n_seeds'], 'prompt')} a seed"
    handles = []
    for one in series:
        line, marker = (one.line, "") if lines_only else (one.style.line, one.style.marker)
        handles.append(Line2D([], [], color=one.style.colour, label=one.name, linestyle=line, marker=marker))
    columns = 2 if len(handles) == 4 else min(3, len(handles))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, title=f"{counts}; {spread}")


def ratio_rows(ratios: dict[Any, int]) -> float:
    """Return the height of the rows of ``ratio_legend`` beyond one, in inches."""
    return 0.18 * ((len(ratios) - 1) // 4)


def ratio_legend(
    figure: Figure,
    ratios: dict[Any, int],
    title: str,
    where: Literal["outside upper center", "outside lower center"] = "outside upper center",
    **style: Any,
) -> None:
    """Draw the legend of the colours of OOD ratios."""
    colours = ratio_colours(len(ratios))
    handles = [Line2D([], [], color=colours[i], label=f"{percent(ratio)} %", **style) for ratio, i in ratios.items()]
    figure.legend(handles=handles, loc=where, ncols=min(4, len(handles)), title=title)
