"""The worth of having seen the very test items: the copied half of them beside the other half."""

from textwrap import fill

import pandas as pd

from rayexp.evaluation.statistics import summarised
from rayexp.reports.arms import ROLE_NAMES, percent, title_suffix
from rayexp.reports.drawing import (
    BOOTSTRAP,
    WIDE,
    ReportFigure,
    intervals,
    legend_rows,
    lines,
    on_page,
    panels,
    ratio_axes,
    ratio_places,
    require_room,
    series_legend,
    taller,
)
from rayexp.reports.explore import over_ratios
from rayexp.reports.figures.mass import by_stage, stage_series, trained

#: Columns of which each combination has a row of panels.
ROW = ["condition", "prompt_role"]


@on_page(
    "Copied test items and their controls", place=1, of="copies", explore=over_ratios("worth", "q", colour="stage")
)
def copies_by_stage(pairs: pd.DataFrame) -> ReportFigure | None:
    """Draw the mean mass of copied items after each stage, and how much more it is than that of their controls, against
    the share of copies in pretraining; a row for each arm."""
    data = pd.DataFrame(
        [{**about, **summarised(rows, q="q", worth="worth")} for about, rows in by_stage(pairs) if len(rows)]
    )
    if data.empty:
        return None
    require_room(data, ROW, "kl_beta", sides=2, along=["ood_ratio"])
    ratios, stages = ratio_places(data), stage_series(data)
    rows = data[ROW].drop_duplicates()
    figure, axes = panels(len(rows), 1.9 + taller(data["condition"], WIDE), 0.8 + legend_rows(stages))
    for (condition, prompts), (left, right) in zip(rows.itertuples(index=False), axes, strict=True):
        here = data[(data["condition"] == condition) & (data["prompt_role"] == prompts)]
        for one in stages:
            points = here[here["stage"] == one.key]
            intervals(left, points, "q", ratios, one, stages)
            intervals(right, points, "worth", ratios, one, stages)
        role = ROLE_NAMES[here["role"].iloc[0]]
        left.set_title(lines(f"{trained(here, prompts)}{title_suffix(condition)}: {role} cells", WIDE), loc="left")
        left.set(ylabel=fill("mean mass of copied items", 20), ylim=(-0.03, 1.03))
        right.set(ylabel=fill("copied items - their controls", 20))
        right.axhline(0, color="black", linewidth=0.8)
    ratio_axes(figure, axes, ratios)
    series_legend(figure, stages, data)
    most = data.iloc[int(data["worth"].argmax())]
    return ReportFigure(
        caption="Left: mean mass of the gold completions of test items that pretraining had copies of, after each "
        "stage, by the share that copies are of all its samples. Right: the same less that of their controls, the "
        f"other half of the items, which it has not seen; in pairs. {BOOTSTRAP}",
        alt="Mean mass of copied test items after each stage, and the difference from their controls. The largest is "
        f"{most['worth']:.2g}, at {percent(most['ood_ratio'])} % after {most['stage']}.",
        figure=figure,
        data=data,
    )
