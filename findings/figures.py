"""Figures of docs/findings.md and of the README, drawn from the committed tables."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from findings.collect import FOLDER, table
from findings.runs import RUNS
from rayexp.reports.arms import percent
from rayexp.reports.checks import SMALL_GAIN
from rayexp.reports.drawing import Series, before_and_betas, grid, intervals, plain, ratio_places
from rayexp.reports.figures.objections import effects

DPI = 160
#: The sweet spot: ratios with at least half the largest gain, at the smallest beta above 0.
SWEET = "#009E73"
#: The paper's axes, in its order.
AXES = ("depth", "length", "tokens", "composition")


def draw() -> None:
    """Draw all figures of the committed tables."""
    axes = {axis: masses_of(f"{axis}-tiny") for axis in AXES if (FOLDER / f"{axis}-tiny.csv").exists()}
    if axes:
        masses_by_ratio(axes, FOLDER / "axes.png")
    for run in RUNS:
        path = FOLDER / f"{run.name}.csv"
        if path.exists() and "objection" in (rows := table(run.name)):
            with plain():
                if drawing := effects(rows):
                    _save(drawing.figure, path.with_suffix(".png"))


def masses_of(name: str, prompts: str = "ood", cells: str = "ood") -> pd.DataFrame:
    """Return the committed masses of a study. prompts, cells: roles of GRPO's prompts and of the measured cells."""
    rows = table(name)
    return rows[(rows["prompt_role"] == prompts) & (rows["role"] == cells)]


def masses_by_ratio(panels: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw correct mass before and after GRPO against the OOD ratio. panels: tables of masses by title.

    The sweet spot has a green background.
    """
    with plain():
        series = before_and_betas(pd.concat([rows["kl_beta"] for rows in panels.values()]))
        figure, axes = grid(len(panels), 1.9, around=0.6)
        for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
            _panel(axis, rows, series)
            axis.set_title(title)
        figure.supxlabel("OOD samples in pretraining (%)", fontsize="medium")
        figure.supylabel("mean correct mass", fontsize="medium")
        handles = axes.flat[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=2)
        _save(figure, path)


def _panel(axis: Axes, masses: pd.DataFrame, series: list[Series]) -> None:
    ratios = ratio_places(masses)
    gains = masses[masses["kl_beta"] == masses[masses["kl_beta"] > 0]["kl_beta"].min()]
    for ratio in gains[gains["gain"] >= max(SMALL_GAIN, gains["gain"].max() / 2)]["ood_ratio"]:
        axis.axvspan(ratios[ratio] - 0.5, ratios[ratio] + 0.5, color=SWEET, alpha=0.15, linewidth=0)
    for one in series:
        rows = masses[masses["kl_beta"].isna() if one.key is None else masses["kl_beta"] == one.key]
        intervals(axis, rows, "q", ratios, one, series)
        axis.plot([], [], color=one.style.colour, marker=one.style.marker, label=one.name)
    axis.set(ylim=(-0.03, 1.03), xlim=(-0.5, len(ratios) - 0.5))
    axis.set_xticks(list(ratios.values()), labels=[percent(ratio) for ratio in ratios], fontsize=7)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, facecolor="white")
