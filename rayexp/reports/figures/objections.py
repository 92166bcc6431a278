"""The objections at a glance: how much more, or less, each condition gains than the control."""

import pandas as pd
from matplotlib.axes import Axes

from rayexp.reports.arms import counted, percent
from rayexp.reports.drawing import COLOURS, NARROW, ReportFigure, grid, lines, on_page, require_room
from rayexp.reports.explore import forest
from rayexp.reports.objections import REFUTED, SAME_GAIN, SUPPORTED

PANEL = ["task", "ood_ratio", "setting"]
STYLE = {SUPPORTED: (COLOURS[2], "o"), REFUTED: (COLOURS[1], "X")}


@on_page(
    "Who is right: each condition beside the control",
    place=1,
    of="objections",
    explore=forest("value", "condition", "verdict", ("place",)),
)
def effects(objections: pd.DataFrame) -> ReportFigure | None:
    """Draw the effect that each verdict is about, with its interval; a panel for each task and OOD ratio."""
    data = objections.dropna(subset=["value"])
    if data.empty:
        return None
    require_room(data, PANEL, "")
    names = data["condition"].drop_duplicates().tolist()
    shown = data[PANEL].drop_duplicates()
    figure, axes = grid(len(shown), 0.7 + 0.17 * len(names), around=0.5)
    for axis, place in zip(axes.flat, shown.itertuples(index=False), strict=False):
        here = data[(data[PANEL] == tuple(place)).all(axis=1)]
        _drawn(axis, here, names)
        title = ", ".join(filter(None, [place[0], f"{percent(place[1])} % OOD", place[2]]))
        axis.set_title(lines(title, NARROW))
    for axis in axes[:, 1:].flat:
        axis.tick_params(labelleft=False)
    figure.supxlabel(f"effect on the gain (or the gain); {counted(data['seeds'], 'seed')}", fontsize="medium")
    decided = data[data["verdict"].isin(STYLE)]
    said = ", ".join(f"{row.condition} ({row.verdict})" for row in decided.itertuples()) or "none"
    return ReportFigure(
        caption="What each condition adds to pass@k of the target cells, less what the control adds (what it adds "
        "itself, if it is to gain nothing), with the interval of its verdict. Green circles: the objection is "
        "supported; orange crosses: refuted; grey squares: undecided, or not tested.",
        alt=f"Effects of {len(names)} conditions on the gain. Decided: {said}.",
        figure=figure,
        data=data,
    )


def _drawn(axis: Axes, here: pd.DataFrame, names: list[str]) -> None:
    axis.axvline(0, color="black", linewidth=0.8)
    for row in here.to_dict("records"):
        colour, marker = STYLE.get(row["verdict"], ("#808080", "s"))
        ends = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]
        axis.errorbar(row["value"], names.index(row["condition"]), xerr=ends, color=colour, marker=marker, elinewidth=1)
    axis.set_yticks(range(len(names)), labels=names, fontsize=7)
    axis.set_ylim(len(names) - 0.5, -0.5)
    left, right = axis.get_xlim()
    axis.set_xlim(min(left, -SAME_GAIN), max(right, SAME_GAIN))  # so that noise does not look like an effect
