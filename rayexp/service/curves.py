"""The metrics of a stage over its steps, and small line charts of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayexp.errors import first_line
from rayexp.service.facts import METRICS
from rayexp.store.artifacts import StoreError
from rayexp.store.index import StoreIndex
from rayexp.telemetry.metrics import METRICS as DEFINED

#: Largest number of points of a curve.
POINTS = 200
#: Size of a chart and its margins, in units of its view box.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 150, 72, 10, 10, 32

#: Relative difference of values up to which it is taken for rounding.
ROUNDING = 1e-6

Point = tuple[int, float]


def curves(index: StoreIndex, stage_id: str) -> dict[str, Any]:
    """Return every metric of a finished stage by step: at most ``POINTS`` points with the extremes among them, and the
    number of its values that are not finite, which are left out. problem: why the file can't be read, if so."""
    try:
        rows = index.store.table(stage_id, METRICS).to_pylist()
        found: dict[str, list[Point]] = {}
        for row in rows:
            found.setdefault(str(row["metric"]), []).append((int(row["step"]), float(row["value"])))
    except (StoreError, KeyError, TypeError, ValueError) as error:
        return {"id": stage_id, "problem": first_line(error), "curves": []}
    return {"id": stage_id, "problem": None, "curves": [_curve(name, found[name]) for name in sorted(found)]}


def _curve(name: str, points: list[Point]) -> dict[str, Any]:
    finite = sorted(point for point in points if math.isfinite(point[1]))
    about = DEFINED.get(name)
    return {
        "metric": name,
        "unit": about.unit if about else "",
        "meaning": about.meaning if about else "",
        "not_finite": len(points) - len(finite),
        "points": thinned(finite),
    }


def thinned(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """Return at most ``limit`` points, evenly chosen, with the first, the last, the lowest and the highest."""
    if len(points) <= limit:
        return list(points)
    places = range(len(points))
    even = limit - 2
    chosen = {round(i * (len(points) - 1) / (even - 1)) for i in range(even)}
    chosen |= {min(places, key=lambda i: points[i][1]), max(places, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Chart:
    """A curve in a view box of WIDTH x HEIGHT. line: points of a polyline; low, high: texts of its values at ``bottom``
    and ``top``, equal if the values are; first, last: steps at ``left`` and ``right``."""

    line: str
    low: str
    high: str
    first: int
    last: int
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def chart(points: Sequence[Point]) -> Chart:
    """Return the chart of a curve with at least one point. A constant curve goes through the middle."""
    steps, values = zip(*points, strict=True)
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    if math.isclose(low, high, rel_tol=ROUNDING):
        values = [low] * len(values)
        high = low
    line = " ".join(
        f"{LEFT + _share(step, first, last) * (WIDTH - LEFT - RIGHT):.1f},"
        f"{HEIGHT - BOTTOM - _share(value, low, high) * (HEIGHT - TOP - BOTTOM):.1f}"
        for step, value in zip(steps, values, strict=True)
    )
    return Chart(line, *_apart(low, high), first, last)


def _apart(low: float, high: float) -> tuple[str, str]:
    """Return two values as texts with as few digits as tell them apart, but at least three."""
    digits = next((n for n in range(3, 17) if low == high or f"{low:.{n}g}" != f"{high:.{n}g}"), 17)

    def written(value: float) -> str:
        return f"{value:,.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"

    return written(low), written(high)


def _share(value: float, low: float, high: float) -> float:
    return (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5  # halves, because a difference overflows
