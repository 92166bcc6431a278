"""Correct mass and greedy accuracy against the share of OOD samples in pretraining."""

from collections.abc import Iterator
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd

from rayexp.evaluation.statistics import ALPHA, holm, p_of_mean, summarised
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, TARGET_OF, Arm, arms, before, mass_name, percent, title_suffix
from rayexp.reports.drawing import (
    BOOTSTRAP,
    WIDE,
    LineStyle,
    ReportFigure,
    Series,
    before_and_betas,
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
from rayexp.stages import GRPO, KINDS, RFT
from rayexp.stages.settings import within

#: Columns of which each combination has a row of panels.
ROW = ["condition", "prompt_role", "role"]


@on_page("Correct mass before and after GRPO", place=1, explore=over_ratios("q", "gain"))
def mass_by_ratio(results: pd.DataFrame) -> ReportFigure | None:
    """Draw mean Q before and after GRPO, and the paired gain, against the OOD ratio; a row for each arm and role."""
    shown = _shown(results)
    if not shown:
        return None
    data = masses(results)
    require_room(data, ROW, "kl_beta", sides=2, along=["ood_ratio"])
    mass, ratios, series = mass_name(results), ratio_places(data), before_and_betas(data["kl_beta"])
    figure, axes = panels(len(shown), 2.0 + taller(data["condition"], WIDE), 0.8 + legend_rows(series))
    for (arm, role), (left, right) in zip(shown, axes, strict=True):
        here = arm.of(data[data["role"] == role])
        for one in series:
            points = here[here["kl_beta"].isna() if one.key is None else here["kl_beta"] == one.key]
            intervals(left, points, "q", ratios, one, series)
            if one.key is not None:
                intervals(right, points, "gain", ratios, one, series, open_markers=points["gain_p_holm"] >= ALPHA)
        left.set_title(lines(f"{arm.name}: {ROLE_NAMES[role]} cells", WIDE), loc="left")
        left.set(ylabel=fill(f"mean {mass}", 20), ylim=(-0.03, 1.03))
        right.set(ylabel="gain: mean after - before")
        right.axhline(0, color="black", linewidth=0.8)
        bottom, top = right.get_ylim()
        right.set_ylim(min(bottom, -0.01), max(top, 0.05))  # so that noise does not look like a gain
    ratio_axes(figure, axes, ratios)
    series_legend(figure, series, data)
    best = data.iloc[int(data["gain"].argmax())]
    tested = int(data["gain_p_holm"].notna().sum())
    holm_note = (
        "Hollow: the gain does not differ from 0 (paired, Student's t over seeds, p corrected by Holm for the "
        f"{tested} gains of this figure)."
    )
    return ReportFigure(
        caption=f"Left: mean {mass} of the test prompts before GRPO (its init) and after, by the share of OOD samples "
        "in pretraining. Right: the paired gain. " + " ".join(filter(None, [BOOTSTRAP, holm_note if tested else ""])),
        alt="Mean correct mass before and after GRPO, and the gain, against the OOD ratio. The largest mean gain is "
        f"{best['gain']:.2g}, at {percent(best['ood_ratio'])} % OOD and a KL beta of {number(best['kl_beta'])}.",
        figure=figure,
        data=data,
    )


def masses(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each arm, role, OOD ratio and beta (none before GRPO): mean mass, its interval, and the paired
    gain, with its p-value by itself and corrected by Holm over all rows."""
    data = pd.DataFrame([row for arm, role in _shown(results) for row in _mass_rows(arm, role)])
    data["gain_p"] = data["gain_p"].astype(float)
    return data.assign(gain_p_holm=pd.Series(holm(data["gain_p"].tolist()), dtype=float))


def _shown(results: pd.DataFrame) -> list[tuple[Arm, str]]:
    return [(arm, role) for arm in arms(results) for role in arm.roles if len(arm.cells(role))]


def _mass_rows(arm: Arm, role: str) -> Iterator[dict[str, Any]]:
    rows = arm.cells(role)
    about = {**arm.about, "role": role}
    for ratio, group in before(rows).groupby("ood_ratio"):
        yield {**about, "kl_beta": None, "ood_ratio": ratio, **summarised(group, q="init_q"), "gain_p": None}
    for beta, ratio in rows[["kl_beta", "ood_ratio"]].drop_duplicates().itertuples(index=False):
        group = rows[(rows["kl_beta"] == beta) & (rows["ood_ratio"] == ratio)]
        found = summarised(group, q="q", gain="gain")
        yield {**about, "kl_beta": beta, "ood_ratio": ratio, **found, "gain_p": p_of_mean(group, "gain", 0.0)}


@on_page("Each stage, in and out of distribution", place=2, explore=over_ratios("q", "greedy", colour="stage"))
def mass_by_stage(results: pd.DataFrame) -> ReportFigure | None:
    """Draw greedy accuracy and mean Q after each stage, against the OOD ratio; a row for each arm, and for ID and
    target."""
    data = masses_by_stage(results)
    if data.empty:
        return None
    require_room(data, ROW, "kl_beta", sides=2, along=["ood_ratio"])
    mass, ratios, stages = mass_name(results), ratio_places(data), stage_series(data)
    rows = data[ROW].drop_duplicates()
    figure, axes = panels(len(rows), 1.9 + taller(data["condition"], WIDE), 0.8 + legend_rows(stages))
    for (condition, prompts, role), (left, right) in zip(rows.itertuples(index=False), axes, strict=True):
        here = data[(data["condition"] == condition) & (data["prompt_role"] == prompts) & (data["role"] == role)]
        for one in stages:
            points = here[here["stage"] == one.key]
            intervals(left, points, "greedy", ratios, one, stages)
            intervals(right, points, "q", ratios, one, stages)
        left.set_title(
            lines(f"{trained(here, prompts)}{title_suffix(condition)}: {ROLE_NAMES[role]} cells", WIDE), loc="left"
        )
        left.set(ylabel="greedy accuracy")
        right.set(ylabel=fill(f"mean {mass}", 20))
        for axis in (left, right):
            lowest = max(-0.03, axis.get_ylim()[0])
            axis.set_ylim(lowest, 1 + 0.03 * (1 - lowest))  # 1 is the end of the scale
    ratio_axes(figure, axes, ratios)
    series_legend(figure, stages, data)
    ends = data[data["role"] == "id"]["greedy"]
    return ReportFigure(
        caption="Left: share of test prompts whose most likely completion is right. Right: mean "
        f"{mass}. Axes need not start at 0. {BOOTSTRAP}",
        alt="Accuracy on ID and on OOD cells after pretraining, SFT and GRPO against the OOD ratio. Greedy accuracy on "
        f"ID cells lies between {ends.min():.3g} and {ends.max():.3g}.",
        figure=figure,
        data=data,
    )


def masses_by_stage(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each arm, stage and OOD ratio, and for ID and for target cells: mean mass and greedy accuracy,
    with their intervals."""
    return pd.DataFrame(
        [{**about, **summarised(rows, greedy="greedy_correct", q="q")} for about, rows in by_stage(results)]
    )


def by_stage(measured: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield (settings, rows) for each condition, arm, role, stage and OOD ratio. Rows of stages before GRPO are yielded
    for every arm."""
    betas = measured["kl_beta"].astype(float)
    stages = [
        KINDS[kind].name if np.isnan(beta) else f"{KINDS[kind].name}, β = {number(beta)}"
        for kind, beta in zip(measured["kind"], betas, strict=True)
    ]
    measured = measured.assign(stage=stages, kl_beta=betas)
    conditions = measured["condition"].unique().tolist()
    for condition in _longest(conditions):
        chains = measured[measured["condition"].isin([each for each in conditions if within(each, condition)])]
        layers = chains["layers"].iloc[-1]
        for arm in [role for role in ROLE_NAMES if (chains["prompt_role"] == role).any()] or [""]:
            of_arm = chains[chains["prompt_role"].isna() | (chains["prompt_role"] == arm)]
            for role in dict.fromkeys(("id", TARGET_OF.get(arm, "ood"))):
                rows = of_arm[of_arm["role"] == role]
                for stage, ratio in rows[["stage", "ood_ratio"]].drop_duplicates().itertuples(index=False):
                    group = rows[(rows["stage"] == stage) & (rows["ood_ratio"] == ratio)]
                    about = {"condition": condition, "layers": layers, "prompt_role": arm, "role": role, "stage": stage}
                    about |= {"kl_beta": group["kl_beta"].iloc[0], "ood_ratio": ratio}
                    yield about, group


def trained(rows: pd.DataFrame, prompts: str) -> str:
    """Return the title of an arm: ``GRPO on OOD prompts``, ``GRPO and RFT on OOD prompts``."""
    kinds = [kind for kind in (GRPO.name, RFT.name) if rows["stage"].str.startswith(kind).any()]
    return f"{' and '.join(kinds)} on {ROLE_NAMES[prompts]} prompts" if prompts else "Before GRPO"


def _longest(conditions: list[str]) -> list[str]:
    """Return the conditions of whole chains, without those of stages that a chain is built on."""
    return [one for one in conditions if not any(one != other and within(one, other) for other in conditions)]


def stage_series(data: pd.DataFrame) -> list[Series]:
    """Return the series: pretraining in grey, SFT as before GRPO, GRPO by beta as in the figure above, RFT in its
    own."""
    sft, *betas = before_and_betas(data["kl_beta"])
    names = {"pretraining": LineStyle("#808080", "h", "-"), "SFT": sft.style, RFT.name: LineStyle("#4B0092", "X", "--")}
    names |= {f"GRPO, β = {number(one.key)}": one.style for one in betas}
    return [Series(name, name, style) for name, style in names.items() if (data["stage"] == name).any()]
