"""The figures of a report, each with the exact table that it draws.

All are laid out in two columns of small panels, one row for each arm, so that they can be read on a phone. Colours are
those of Okabe and Ito (2008), which colour-blind readers can tell apart, and every colour has a marker of its own; OOD
ratios, which are ordered, go through cividis.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import expit

from rayexp.evaluation.theory import paper_bound, tilted
from rayexp.report.arms import ROLE_NAMES, Arm, arms, before, counted, interval, mass_name, percent

WIDTH_INCHES = 4.4
DPI = 220
STYLE: dict[str, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.title_fontsize": 8.5,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.7,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "savefig.dpi": DPI,
}
#: Colour and marker of: before GRPO, then the betas in ascending order.
SERIES = [
    ("#000000", "o"),
    ("#0072B2", "s"),
    ("#D55E00", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
]
#: What figure 2 draws at most, for each arm, beta and ratio: more points would hide one another.
POINTS = 300
#: Range of the probability axes of figure 2. Above it, float32 log-probabilities can no longer tell values apart.
SMALLEST, LARGEST = 1e-12, 1 - 1e-6


@dataclass(frozen=True)
class Drawing:
    """A figure, its words, and the data it shows: one row for each point with its interval."""

    title: str
    caption: str
    alt: str
    figure: Figure
    data: pd.DataFrame


def drawings(results: pd.DataFrame, curves: pd.DataFrame) -> list[Drawing]:
    """Every figure that there is data for, from ``table.results`` and ``table.curves``."""
    found = [mass_by_ratio(results), after_against_before(results), id_accuracy(results), training_curves(curves)]
    return [drawing for drawing in found if drawing]


# 1


@rc_context(STYLE)
def mass_by_ratio(results: pd.DataFrame) -> Drawing | None:
    """Mean Q before and after GRPO, and the paired gain, against the OOD ratio; a row for each arm and role of cells."""
    panels = [(arm, role) for arm in arms(results) for role in arm.roles if len(arm.cells(role))]
    if not panels:
        return None
    data = pd.DataFrame([row for arm, role in panels for row in _mass_rows(arm, role)])
    ratios, series = _ratios(data), _series(data["kl_beta"])
    figure, axes = _panels(len(panels), 2.0)
    for (arm, role), (left, right) in zip(panels, axes, strict=True):
        here = data[(data["layers"] == arm.layers) & (data["prompts"] == arm.prompts) & (data["role"] == role)]
        for place, (beta, (_, look)) in enumerate(series.items()):
            points = here[here["kl_beta"].isna() if beta is None else here["kl_beta"] == beta]
            _intervals(left, points, "q", ratios, look, _dodge(place, len(series)))
            if beta is not None:
                _intervals(right, points, "gain", ratios, look, _dodge(place, len(series)))
        left.set_title(f"{arm.name}: {ROLE_NAMES[role]} cells", loc="left")
        left.set(ylabel=f"mean {mass_name(results)}", ylim=(-0.03, 1.03))
        right.set(ylabel="gain: mean after - before")
        right.axhline(0, color="black", linewidth=0.8)
    _ratio_axes(axes, ratios)
    _legend(figure, series, _resting_on(data))
    gains = data.dropna(subset=["gain"])
    best = gains.loc[gains["gain"].idxmax()]
    return Drawing(
        "Correct mass before and after GRPO",
        f"Left: mean {mass_name(results)} of the test prompts before GRPO (its init) and after, by the share of OOD samples "
        "in pretraining. Right: the paired gain. Bars are 95 % bootstrap intervals over seeds, then prompts; with few seeds "
        "they hardly leave the range of the seeds.",
        f"Panels of mean correct mass before and after GRPO, and of the gain, against the OOD ratio. The largest mean gain is "
        f"{best['gain']:.2g}, at {percent(best['ood_ratio'])} % OOD and a KL beta of {best['kl_beta']:g}.",
        figure,
        data,
    )


def _mass_rows(arm: Arm, role: str) -> Iterator[dict[str, Any]]:
    rows = arm.cells(role)
    about = {"layers": arm.layers, "prompts": arm.prompts, "role": role}
    for ratio, group in before(rows).groupby("ood_ratio"):
        yield {**about, "kl_beta": None, "ood_ratio": ratio, **_columns(group, q="init_q")}
    for (beta, ratio), group in rows.groupby(["kl_beta", "ood_ratio"]):
        yield {**about, "kl_beta": beta, "ood_ratio": ratio, **_columns(group, q="q", gain="gain")}


# 2


@rc_context(STYLE)
def after_against_before(results: pd.DataFrame) -> Drawing | None:
    """P after GRPO against Q before it, a point a prompt, on logit axes: there the tilt is a shift by 1 / beta."""
    panels = [
        (arm, role, float(rows["kl_beta"].iloc[0]), rows)
        for arm in arms(results)
        for role in arm.roles
        for _, rows in arm.cells(role).groupby("kl_beta")
    ]
    if not panels:
        return None
    points = [_points(role, beta, rows) for _, role, beta, rows in panels]
    data = pd.concat(points, ignore_index=True)
    ratios = _ratios(data)
    colours = ListedColormap(_ratio_colours(len(ratios)))
    lowest = 10 ** np.floor(np.log10(data[["q", "p"]].to_numpy().min()))
    figure, axes = _panels(-(-len(panels) // 2), 2.4)
    for axis, (arm, role, beta, _), shown in zip(axes.flat, panels, points, strict=False):
        place = shown["ood_ratio"].map(ratios)
        axis.scatter(
            shown["q"], shown["p"], c=place, cmap=colours, vmin=-0.5, vmax=len(ratios) - 0.5, s=5, lw=0, alpha=0.6
        )
        _theory(axis, lowest, beta)
        axis.set_title(f"{arm.name},\n{ROLE_NAMES[role]} cells, β = {beta:g}")
        _logit_axes(axis, lowest)
    for axis in axes.flat[max(0, len(panels) - 2) : len(panels)]:
        axis.set_xlabel(f"{mass_name(results)} before")
    for axis in axes[:, 0]:
        axis.set_ylabel("the same after: P")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    n = data.groupby(["layers", "prompts", "role", "kl_beta"])["seed"].agg(["nunique", "size"])
    note = f"{counted(n['size'], 'prompt')} a panel, of {counted(n['nunique'], 'seed')}"
    figure.legend(handles=THEORY, loc="outside upper center", ncols=3, title=note)
    dots = {"linestyle": "", "marker": "o"}
    _ratio_legend(figure, ratios, "OOD samples in pretraining", "outside lower center", **dots)
    meaning = (
        "an upper limit of the optimum" if (results["samples"] == "trace").any() else "the optimum of the KL objective"
    )
    return Drawing(
        "Each prompt after GRPO against before",
        f"A point is a test prompt of one seed; axes are logit-scaled. Solid: the tilted distribution, {meaning}, a shift by "
        "1/β on these axes. Dashed: the paper's bound exp(1/β) Q. Without a KL penalty (β = 0) neither limits P. At most "
        f"{POINTS} prompts, drawn at random, for each panel and OOD ratio; results.parquet has all.",
        f"{len(panels)} scatter panels of correct mass after GRPO against before, with the tilted optimum and the paper's "
        f"bound. {(data['p'] > data['q']).mean():.0%} of the prompts shown gained mass.",
        figure,
        data,
    )


def _points(role: str, beta: float, rows: pd.DataFrame) -> pd.DataFrame:
    """A random part of the prompts of one panel in random order, so that no ratio lies on top; theory beside them."""
    rows = rows.sample(frac=1, random_state=0).groupby("ood_ratio").head(POINTS)
    points = rows[["layers", "prompts", "role", "kl_beta", "ood_ratio", "seed", "cell", "prompt_index"]].assign(
        q=rows["init_q"].clip(SMALLEST, LARGEST), p=rows["q"].clip(SMALLEST, LARGEST)
    )
    return points.assign(tilted_optimum=tilted(points["q"], beta), paper_bound=paper_bound(points["q"], beta))


THEORY = [
    Line2D([], [], color="black", label="tilted optimum"),
    Line2D([], [], color="black", linestyle="--", label="paper's bound"),
    Line2D([], [], color="grey", linestyle=":", label="no change"),
]


def _theory(axis: Axes, lowest: float, beta: float) -> None:
    q = expit(np.linspace(np.log(lowest), -np.log(1 - LARGEST), 400))
    axis.plot(q, q, color="grey", linestyle=":")
    if beta > 0:
        axis.plot(q, tilted(q, beta).clip(max=LARGEST), color="black")
        axis.plot(q, paper_bound(q, beta).clip(max=LARGEST), color="black", linestyle="--")


def _logit_axes(axis: Axes, lowest: float) -> None:
    decades = int(-np.log10(lowest))
    step = 4 if decades > 5 else 2
    ticks = {10.0**-d: f"$10^{{-{d}}}$" for d in range(step, decades + 1, step)} | {
        0.5: "0.5",
        1 - 10.0**-step: f"{1 - 10**-step}",
    }
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("logit")
    axis.minorticks_off()
    axis.set(xlim=(lowest, LARGEST), ylim=(lowest, LARGEST), box_aspect=1)
    axis.set_xticks(list(ticks), labels=list(ticks.values()))
    axis.set_yticks(list(ticks), labels=list(ticks.values()))


# 3


@rc_context(STYLE)
def id_accuracy(results: pd.DataFrame) -> Drawing | None:
    """Greedy accuracy and mean Q on ID cells after each stage, against the OOD ratio; a row for each arm."""
    measured = results[results["role"] == "id"].assign(greedy=results["greedy_correct"].astype(float))
    if measured.empty:
        return None
    measured["kl_beta"] = measured["kl_beta"].astype(float)
    measured["stage"] = [_stage(kind, beta) for kind, beta in zip(measured["kind"], measured["kl_beta"], strict=True)]
    several = measured["layers"].nunique() > 1
    rows = [
        {"layers": layers, "prompts": prompts, "stage": stage, "kl_beta": group["kl_beta"].iloc[0], "ood_ratio": ratio}
        | _columns(group, greedy="greedy", q="q")
        for layers, depth in measured.groupby("layers")
        for prompts in depth["prompts"].dropna().unique().tolist() or [None]
        for (stage, ratio), group in depth[depth["prompts"].isna() | (depth["prompts"] == prompts)].groupby(
            ["stage", "ood_ratio"], sort=False
        )
    ]
    data = pd.DataFrame(rows)
    ratios = _ratios(data)
    panels = list(data.groupby(["layers", "prompts"], dropna=False, sort=False))
    stages = _stage_series(data)
    figure, axes = _panels(len(panels), 1.9)
    for ((layers, prompts), here), (left, right) in zip(panels, axes, strict=True):
        for place, (stage, (_, look)) in enumerate(stages.items()):
            points = here[here["stage"] == stage]
            _intervals(left, points, "greedy", ratios, look, _dodge(place, len(stages)))
            _intervals(right, points, "q", ratios, look, _dodge(place, len(stages)))
        arm = f"GRPO on {ROLE_NAMES[str(prompts)]} prompts" if prompts in ROLE_NAMES else "Before GRPO"
        left.set_title(arm + (f", {layers} layers" if several else "") + ": ID cells", loc="left")
        left.set(ylabel="greedy accuracy")
        right.set(ylabel=f"mean {mass_name(results)}")
    _ratio_axes(axes, ratios)
    _legend(figure, stages, _resting_on(data))
    lowest, highest = data["greedy"].min(), data["greedy"].max()
    return Drawing(
        "In-distribution accuracy after each stage",
        f"ID cells only. Left: share of test prompts whose most likely completion is right. Right: mean {mass_name(results)}. "
        "Axes need not start at 0. Bars are 95 % bootstrap intervals over seeds, then prompts.",
        f"Panels of ID accuracy after pretraining, SFT and GRPO against the OOD ratio. Greedy accuracy lies between "
        f"{lowest:.3g} and {highest:.3g}.",
        figure,
        data,
    )


def _stage(kind: str, beta: float) -> str:
    return {"pretrain": "pretraining", "sft": "SFT"}.get(kind, f"GRPO, β = {beta:g}")


def _stage_series(data: pd.DataFrame) -> dict[Any, tuple[str, tuple[str, str]]]:
    """Looks by stage: pretraining in grey, SFT as what was before GRPO, GRPO by beta, as in figure 1."""
    looks = {"pretraining": ("#999999", "h")}
    looks |= {
        _stage("sft" if beta is None else "grpo", beta or 0): look
        for beta, (_, look) in _series(data["kl_beta"]).items()
    }
    return {stage: (stage, look) for stage, look in looks.items() if (data["stage"] == stage).any()}


# 4


@rc_context(STYLE)
def training_curves(curves: pd.DataFrame) -> Drawing | None:
    """Reward and KL to the reference over GRPO steps, a line an OOD ratio; a row for each arm and beta."""
    logged = curves[(curves["kind"] == "grpo") & curves["metric"].isin(["rollout/reward", "grpo/kl"])]
    if logged.empty:
        return None
    # Without a penalty there is no reference and the KL is not computed.
    logged = logged[(logged["metric"] != "grpo/kl") | (logged["kl_beta"] > 0)]
    keys = ["layers", "prompts", "kl_beta", "metric", "ood_ratio", "step"]
    data = (
        logged.groupby(keys)["value"]
        .agg(["mean", "min", "max", "size"])
        .rename(columns={"size": "n_seeds"})
        .reset_index()
    )
    ratios = _ratios(data)
    colours = _ratio_colours(len(ratios))
    panels = list(data.groupby(["layers", "prompts", "kl_beta"]))
    several = data["layers"].nunique() > 1
    figure, axes = _panels(len(panels), 1.6)
    for ((layers, prompts, beta), here), pair in zip(panels, axes, strict=True):
        for axis, metric in zip(pair, ("rollout/reward", "grpo/kl"), strict=True):
            for ratio, line in here[here["metric"] == metric].groupby("ood_ratio"):
                axis.plot(line["step"], line["mean"], color=colours[ratios[ratio]])
                axis.fill_between(line["step"], line["min"], line["max"], color=colours[ratios[ratio]], alpha=0.2, lw=0)
        depth = f", {layers} layers" if several else ""
        pair[0].set_title(f"GRPO on {ROLE_NAMES[str(prompts)]} prompts{depth}, β = {beta:g}", loc="left")
        pair[0].set(ylabel="reward (share correct)", ylim=(-0.03, 1.03))
        pair[1].set(ylabel="KL to init (nats)", ylim=(0, None))
        if beta == 0:
            pair[1].set_axis_off()
            pair[1].text(
                0.5, 0.5, "KL is not computed\nat β = 0", ha="center", va="center", transform=pair[1].transAxes
            )
    for axis in axes[-1]:
        axis.set_xlabel("GRPO step")
    _ratio_legend(figure, ratios, f"OOD samples in pretraining; band: all of {counted(data['n_seeds'], 'seed')}")
    last = data[(data["metric"] == "rollout/reward") & (data["step"] == data["step"].max())]["mean"]
    return Drawing(
        "Reward and KL during GRPO",
        "Left: mean reward of a step's completions, of which 1 is correct and 0 is not. Right: KL divergence from the init, "
        "in nats a completion. Lines are means over seeds, bands reach from the lowest to the highest seed.",
        f"Curves of reward and of KL over GRPO steps, a line for each OOD ratio. At the last step mean rewards lie between "
        f"{last.min():.2g} and {last.max():.2g}.",
        figure,
        data,
    )


# Parts


def _columns(rows: pd.DataFrame, **columns: str) -> dict[str, Any]:
    """Mean and interval of each column under a new name, and what they rest on: n is seeds times prompts."""
    out: dict[str, Any] = {}
    for name, column in columns.items():
        found = interval(rows, column)
        out |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        out |= {"n_seeds": found.seeds, "n": found.prompts}
    return out


def _ratios(data: pd.DataFrame) -> dict[Any, int]:
    """Place of each OOD ratio on an axis where all are evenly spaced, 0 among them."""
    return {ratio: place for place, ratio in enumerate(sorted(data["ood_ratio"].unique()))}


def _ratio_colours(count: int) -> list[Any]:
    return [colormaps["viridis"](x) for x in np.linspace(0, 0.9, count)]


def _series(betas: pd.Series) -> dict[Any, tuple[str, tuple[str, str]]]:
    """Name, colour and marker of each beta; None is before GRPO."""
    keys = [None, *sorted(betas.dropna().unique().tolist())]
    names = ["before GRPO", *(f"after, β = {beta:g}" for beta in keys[1:])]
    return {key: (name, SERIES[i % len(SERIES)]) for i, (key, name) in enumerate(zip(keys, names, strict=True))}


def _dodge(place: int, count: int) -> float:
    """Sideways shift, in places of the axis, that keeps intervals apart."""
    return 0.09 * (place - (count - 1) / 2)


def _intervals(
    axis: Axes, points: pd.DataFrame, column: str, ratios: dict[Any, int], look: tuple[str, str], shift: float
) -> None:
    points = points.sort_values("ood_ratio")
    mean = points[column].to_numpy(dtype=float)
    ends = np.abs(np.stack([mean - points[f"{column}_low"], points[f"{column}_high"] - mean]).astype(float))
    x = points["ood_ratio"].map(ratios) + shift
    colour, marker = look
    axis.errorbar(x, mean, yerr=ends, color=colour, marker=marker, elinewidth=1, capsize=0)


def _panels(rows: int, height: float) -> tuple[Figure, np.ndarray]:
    """Figure and axes [rows, 2]; ``height`` of a row in inches."""
    figure = Figure(figsize=(WIDTH_INCHES, rows * height + 0.8), layout="constrained")
    return figure, figure.subplots(rows, 2, squeeze=False)


def _ratio_axes(axes: np.ndarray, ratios: dict[Any, int]) -> None:
    for axis in axes.flat:
        axis.set_xticks(
            list(ratios.values()), labels=[percent(ratio) for ratio in ratios], fontsize=7 if len(ratios) > 6 else None
        )
    axes[0, 0].figure.supxlabel("OOD samples in pretraining (%)", fontsize=STYLE["font.size"])


def _ratio_legend(
    figure: Figure, ratios: dict[Any, int], title: str, where: str = "outside upper center", **look: Any
) -> None:
    colours = _ratio_colours(len(ratios))
    handles = [Line2D([], [], color=colours[i], label=f"{percent(ratio)} %", **look) for ratio, i in ratios.items()]
    figure.legend(handles=handles, loc=where, ncols=min(4, len(handles)), title=title)


def _resting_on(data: pd.DataFrame) -> str:
    return f"{counted(data['n_seeds'], 'seed')}, {counted(data['n'] // data['n_seeds'], 'prompt')} a seed; bars: 95 % interval"


def _legend(figure: Figure, series: dict[Any, tuple[str, tuple[str, str]]], title: str) -> None:
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in series.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)), title=title)
