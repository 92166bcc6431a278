"""Measured P beside the fixed point of GRPO as it is run, in studies of settings that move that point."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from rayexp.evaluation.statistics import summarised
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, Arm, arms, mass_name, percent, title_suffix
from rayexp.reports.drawing import (
    BOOTSTRAP,
    LINE_STYLES,
    ReportFigure,
    Series,
    grid,
    intervals,
    legend_rows,
    lines,
    on_page,
    ratio_axes,
    ratio_places,
    require_room,
    series_legend,
    taller,
)

#: Settings whose values are the lines of a panel; a panel is for all else of a condition.
OF_A_LINE = ("group_size", "prompts_per_step")
PANEL = ["panel", "prompt_role", "kl_beta"]


@on_page("Where GRPO converged, and where theory has it converge", place=7)
def measured_and_predicted(results: pd.DataFrame) -> ReportFigure | None:
    """Draw mean P after GRPO and mean fixed point against the OOD ratio; a panel for each condition and beta, in which
    each size of groups has a line. Of studies with several conditions; others have the fixed points of single
    prompts."""
    data = predictions(results)
    if data.empty or data["condition"].nunique() == 1 or data["fixed_point"].isna().all():
        return None
    require_room(data, PANEL, "line", along=["ood_ratio"])
    ratios, shown = ratio_places(data), data[PANEL].drop_duplicates()
    names = _names(data["line"].drop_duplicates().tolist())
    series = [Series(*each, style) for each, style in zip(names.items(), LINE_STYLES[1:], strict=False)]
    figure, axes = grid(len(shown), 1.8 + taller(data["panel"]), around=1.0 + legend_rows(series))
    for axis, (panel, role, beta) in zip(axes.flat, shown.itertuples(index=False), strict=False):
        here = data[(data["panel"] == panel) & (data["prompt_role"] == role) & (data["kl_beta"] == beta)]
        _drawn(axis, here, ratios, series)
        axis.set_title(lines(f"{ROLE_NAMES[role]} prompts{title_suffix(panel)}, β = {number(beta)}"))
    for axis in axes[:, 0]:
        axis.set_ylabel(f"mean {mass_name(results)}")
    ratio_axes(figure, axes.flat[: len(shown)], ratios)
    series_legend(figure, series, data, spread="solid: measured, dotted: fixed point")
    known = data.dropna(subset=["fixed_point"])
    farthest = known.iloc[int((known["q"] - known["fixed_point"]).abs().argmax())]
    reasons = "; ".join(filter(None, data["beyond_theory"].unique()))
    return ReportFigure(
        caption="Test prompts of the role that GRPO was trained on, by the share of OOD samples in pretraining. Solid: "
        "mean P after GRPO. Dotted: the mean fixed point of GRPO as it is run, which it need not have reached. Grey "
        f"dashes: before GRPO. {f'No fixed point is drawn where it is not known: {reasons}. ' if reasons else ''}"
        f"{BOOTSTRAP}",
        alt="Mean correct mass after GRPO beside the mean fixed point of GRPO as it is run. They are farthest apart at "
        f"{percent(farthest['ood_ratio'])} % OOD, {farthest['condition']}, β = {number(farthest['kl_beta'])}: "
        f"{farthest['q']:.2g} and {farthest['fixed_point']:.2g}.",
        figure=figure,
        data=data,
    )


def predictions(results: pd.DataFrame) -> pd.DataFrame:
    """Return the measured and the predicted mean P on GRPO's own cells, a row for each arm, beta and OOD ratio."""
    return pd.DataFrame([row for arm in arms(results) for row in _rows(arm)])


def _rows(arm: Arm) -> Iterator[dict[str, Any]]:
    panel, line = _divided(arm.condition)
    for (beta, ratio), group in arm.cells(arm.prompt_role).groupby(["kl_beta", "ood_ratio"]):
        yield {
            **arm.about,
            **{"panel": panel, "line": line, "kl_beta": beta, "ood_ratio": ratio},
            **summarised(group, q="q"),
            "init_q": group["init_q"].mean(),
            "fixed_point": group["fixed_point"].mean(),
            "highest_fixed_point": group["highest_fixed_point"].mean(),
            "beyond_theory": group["beyond_theory"].iloc[0],
        }


def _divided(condition: str) -> tuple[str, str]:
    """Return the parts of a condition that a panel is for, and those that a line is for."""
    parts = condition.split(", ")
    of_line = [part for part in parts if part.partition(" = ")[0].rpartition(" ")[2] in OF_A_LINE]
    return ", ".join(part for part in parts if part not in of_line), ", ".join(of_line)


def _names(of_lines: list[str]) -> dict[str, str]:
    """Return the names of lines: the first of their settings, if that tells all of them apart."""
    first = {line: line.partition(", ")[0] for line in of_lines}
    names = first if len(set(first.values())) == len(first) else dict(zip(of_lines, of_lines, strict=True))
    return {line: name or "after GRPO" for line, name in names.items()}


def _drawn(axis: Axes, here: pd.DataFrame, ratios: dict[Any, int], series: list[Series]) -> None:
    for one in series:
        points = here[here["line"] == one.key].sort_values("ood_ratio")
        if len(points):
            intervals(axis, points, "q", ratios, one, series)
            x = points["ood_ratio"].map(ratios)
            axis.plot(x, points["init_q"], color="grey", linestyle="--")
            axis.plot(x, points["fixed_point"], color=one.style.colour, linestyle=":")
    axis.set_ylim(-0.03, 1.03)
