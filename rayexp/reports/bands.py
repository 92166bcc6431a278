"""Panels of lines with bands over seeds: one for each arm and OOD ratio, with a line before GRPO and one for each β."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rayexp.reports.arms import ROLE_NAMES, Arm, percent
from rayexp.reports.drawing import (
    PRETRAINED,
    before_and_betas,
    grid,
    legend_rows,
    lines,
    require_room,
    series_legend,
    taller,
)


def band_panels(data: pd.DataFrame, arms: Sequence[Arm], x: str, y: str) -> tuple[Figure, np.ndarray]:
    """Draw the columns ``y``, and ``lowest`` to ``highest``, against ``x``, which counts completions on a logarithmic
    axis. Return the figure and its axes. Raises CrowdedError where there is more than a figure can show."""
    require_room(data, ["condition", "prompt_role", "ood_ratio"], "kl_beta")
    series = before_and_betas(data["kl_beta"])
    if "stage" in data and (data["stage"] == PRETRAINED.key).any():
        series = [PRETRAINED, *series]
    found = [(arm, ratio) for arm in arms for ratio in arm.of(data)["ood_ratio"].unique().tolist()]
    figure, axes = grid(len(found), 1.8 + taller(data["condition"]), around=0.9 + legend_rows(series))
    for axis, (arm, ratio) in zip(axes.flat, found, strict=False):
        here = arm.of(data[data["ood_ratio"] == ratio])
        for one in series:
            line = _line(here, one.key)
            axis.plot(line[x], line[y], color=one.style.colour, linestyle=one.line)
            axis.fill_between(line[x], line["lowest"], line["highest"], color=one.style.colour, alpha=0.15, lw=0)
        axis.set_title(f"{lines(arm.short_name)}:\n{ROLE_NAMES[arm.target]} cells, {percent(ratio)} % OOD")
        axis.set(xscale="log", ylim=(-0.03, 1.03), xlim=(1, data[x].max()))
        axis.minorticks_off()
    series_legend(figure, series, data, spread="band: all seeds", lines_only=True)
    return figure, axes


def _line(data: pd.DataFrame, key: Any) -> pd.DataFrame:
    """Return the rows of one series: GRPO at a beta, the model before GRPO (key None), or pretraining."""
    earlier = data["stage"] == PRETRAINED.key if "stage" in data else pd.Series(False, index=data.index)
    if key == PRETRAINED.key:
        return data[earlier]
    return data[~earlier & (data["kl_beta"].isna() if key is None else data["kl_beta"] == key)]
