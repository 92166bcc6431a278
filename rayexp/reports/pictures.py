"""Figures of the page, and their files beside it. In the place of a figure that can't be drawn stands the reason.

No result depends on a figure: whatever goes wrong here, tables and the rest of the page are written.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rayexp.errors import sentence
from rayexp.formatting import number

if TYPE_CHECKING:
    from rayexp.reports.drawing import OnPage, ReportFigure

#: Rows of a table that replaces a figure on the page; a longer table is only written to a file.
TABLE_ROWS = 1000
#: Bytes of a page, which is sent by mail, and of its script and text.
PAGE_BYTES, REST_BYTES = 6_000_000, 1_300_000
#: Columns with settings, which are shown with all digits, so that two of them never look alike.
SETTINGS = ("kl_beta", "ood_ratio")


@dataclass(frozen=True)
class Picture:
    """A figure on the page. svg: in base64. size: in CSS pixels, so that the page does not jump while it loads. data:
    whether its data were written. why: the reason if it could not be drawn. crowded: the reason if it was not drawn
    because its data are too many; then ``rows`` under ``columns`` are the data, unless they are too many as well.
    chart: its interactive chart (``reports.explore``), if it has one. unexplored: why it has none, if it should.
    """

    title: str
    caption: str = ""
    alt: str = ""
    svg: str = ""
    size: tuple[int, int] = (0, 0)
    data: bool = False
    why: str = ""
    crowded: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    chart: dict[str, Any] | None = None
    unexplored: str = ""


def pictures(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Picture]:
    """Draw every figure that has data into ``folder``: figure-N.png and figure-N.csv. tables: by the names that figures
    give in ``drawing.on_page``."""
    try:
        from rayexp.reports.figures import FIGURES  # imports matplotlib, which reads the user's files
    except Exception as error:
        return [Picture("All figures", why=sentence(error))]
    found: list[Picture] = []
    for of, figures in FIGURES.items():
        for title, figure in figures.items():
            if of in tables and (picture := _picture(title, figure, tables[of], folder / f"figure-{len(found) + 1}")):
                found.append(picture)
    return within(found, PAGE_BYTES - REST_BYTES)


def scripted(pictures: Sequence[Picture]) -> tuple[list[Picture], str]:
    """Return pictures and the script of their charts. If that can't be made, the pictures say so instead of a chart."""
    if not any(picture.chart for picture in pictures):
        return list(pictures), ""
    try:
        from rayexp.reports.explore import script

        return list(pictures), script()
    except Exception as error:
        without = {"chart": None, "unexplored": sentence(error)}
        return [replace(picture, **without) if picture.chart else picture for picture in pictures], ""


def within(pictures: Sequence[Picture], limit: int) -> list[Picture]:
    """Return pictures with as many of their charts, from the first on, as fit into a limit."""
    limit -= sum(len(picture.svg) for picture in pictures)
    kept: list[Picture] = []
    for picture in pictures:
        size = len(json.dumps(picture.chart))
        fits = size <= limit
        limit -= size if fits else 0
        kept.append(picture if fits else replace(picture, chart=None, unexplored="the page would be too large"))
    return kept


def _picture(title: str, figure: "OnPage", rows: pd.DataFrame, path: Path) -> Picture | None:
    """Draw one figure, and write it to ``path`` with .png and .csv."""
    from rayexp.reports.drawing import CrowdedError, plain

    image, data = path.with_suffix(".png"), path.with_suffix(".csv")
    try:
        with plain():
            drawing = figure.draw(rows)
            if drawing is None:
                return None
            drawing.data.to_csv(data, index=False)
            svg, size = _saved(drawing, image)
    except CrowdedError as crowded:
        crowded.data.to_csv(data, index=False)
        image.unlink(missing_ok=True)
        return replace(_tabulated(title, str(crowded), crowded.data), **_explored(figure, crowded.data))
    except Exception as error:
        image.unlink(missing_ok=True)
        return Picture(title, data=data.exists(), why=sentence(error))
    return Picture(title, drawing.caption, drawing.alt, svg, size, data=True, **_explored(figure, drawing.data))


def _explored(figure: "OnPage", data: pd.DataFrame) -> dict[str, Any]:
    """Return the chart of a figure's data, as fields of its picture."""
    from rayexp.reports.explore import specification

    if figure.explore is None:
        return {}
    try:
        return {"chart": specification(data, figure.explore)}
    except Exception as error:
        return {"unexplored": sentence(error)}


def _tabulated(title: str, crowded: str, data: pd.DataFrame) -> Picture:
    """Return the table that replaces a figure: its data, without the columns in which all rows are the same."""
    shown = data.loc[:, data.nunique(dropna=False) > 1] if len(data) <= TABLE_ROWS else data.iloc[:0, :0]
    columns = [[_cell(value, name in SETTINGS) for value in shown[name]] for name in shown]
    return Picture(
        title, data=True, crowded=crowded, columns=list(shown.columns), rows=list(zip(*columns, strict=True))
    )


def _cell(value: Any, setting: bool) -> str:
    """Return a value of a table as text: empty if missing, all digits of a setting, four digits of a measurement."""
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return number(value) if setting else f"{value:.4g}"
    return str(value)


def _saved(drawing: "ReportFigure", image: Path) -> tuple[str, tuple[int, int]]:
    """Save a drawing as an image. Return it as vectors on a transparent ground, which dark mode can invert, and its
    size."""
    from rayexp.reports.drawing import DPI

    buffer = io.BytesIO()
    drawing.figure.savefig(image, dpi=DPI)
    drawing.figure.set_layout_engine("none")  # all is in its place; to find it again takes a third of the time
    # The same drawing gives the same bytes: no date, and element ids from a fixed salt (drawing.STYLE).
    drawing.figure.savefig(buffer, format="svg", dpi=DPI, transparent=True, metadata={"Date": None})
    width, height = (round(96 * inches) for inches in drawing.figure.get_size_inches())
    return base64.b64encode(buffer.getvalue()).decode(), (width, height)
