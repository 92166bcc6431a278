"""The figures of a report, each with the exact table that it draws. One row of panels for each arm of the study."""

from collections.abc import Iterator
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from scipy.special import expit, logit

from rayexp.evaluation.theory import paper_bound, tilted
from rayexp.report.arms import ROLE_NAMES, Arm, arms, before, counted, interval, mass_name, percent
from rayexp.report.drawing import (
    Drawing,
    Series,
    before_and_betas,
    intervals,
    panels,
    ratio_axes,
    ratio_colours,
    ratio_legend,
    ratio_places,
    series_legend,
    styled,
)

#: What figure 2 draws at most, for each panel and ratio: more points would hide one another.
POINTS = 300
#: Range of the probability axes of figure 2. Above it, float32 log-probabilities can hardly tell values apart.
SMALLEST, LARGEST = 1e-12, 1 - 1e-6
BOOTSTRAP = (
    "Bars are 95 % bootstrap intervals over seeds, then prompts; with few seeds they hardly leave the seeds' range."
)


def drawings(results: pd.DataFrame, curves: pd.DataFrame) -> list[Drawing]:
    """Every figure that there is data for, from ``table.results`` and ``table.curves``."""
    found = [mass_by_ratio(results), after_against_before(results), id_accuracy(results), training_curves(curves)]
    return [drawing for drawing in found if drawing]


# Figure 1


@styled
def mass_by_ratio(results: pd.DataFrame) -> Drawing | None:
    """Mean Q before and after GRPO, and the paired gain, against the OOD ratio; a row for each arm and role."""
    shown = [(arm, role) for arm in arms(results) for role in arm.roles if len(arm.cells(role))]
    if not shown:
        return None
    data = pd.DataFrame([row for arm, role in shown for row in _mass_rows(arm, role)])
    mass, ratios, series = mass_name(results), ratio_places(data), before_and_betas(data["kl_beta"])
    figure, axes = panels(len(shown), 2.0)
    for (arm, role), (left, right) in zip(shown, axes, strict=True):
        here = data[(data["layers"] == arm.layers) & (data["prompts"] == arm.prompts) & (data["role"] == role)]
        for one in series:
            points = here[here["kl_beta"].isna() if one.key is None else here["kl_beta"] == one.key]
            intervals(left, points, "q", ratios, one, series)
            if one.key is not None:
                intervals(right, points, "gain", ratios, one, series)
        left.set_title(f"{arm.name}: {ROLE_NAMES[role]} cells", loc="left")
        left.set(ylabel=fill(f"mean {mass}", 20), ylim=(-0.03, 1.03))
        right.set(ylabel="gain: mean after - before")
        right.axhline(0, color="black", linewidth=0.8)
        bottom, top = right.get_ylim()
        right.set_ylim(min(bottom, -0.01), max(top, 0.05))  # so that noise does not look like a gain
    ratio_axes(figure, axes, ratios)
    series_legend(figure, series, data)
    best = data.iloc[int(data["gain"].argmax())]
    return Drawing(
        title="Correct mass before and after GRPO",
        caption=f"Left: mean {mass} of the test prompts before GRPO (its init) and after, by the share of OOD samples "
        f"in pretraining. Right: the paired gain. {BOOTSTRAP}",
        alt="Mean correct mass before and after GRPO, and the gain, against the OOD ratio. The largest mean gain is "
        f"{best['gain']:.2g}, at {percent(best['ood_ratio'])} % OOD and a KL beta of {best['kl_beta']:g}.",
        figure=figure,
        data=data,
    )


def _mass_rows(arm: Arm, role: str) -> Iterator[dict[str, Any]]:
    rows = arm.cells(role)
    about = {"layers": arm.layers, "prompts": arm.prompts, "role": role}
    for ratio, group in before(rows).groupby("ood_ratio"):
        yield {**about, "kl_beta": None, "ood_ratio": ratio, **_columns(group, q="init_q")}
    for beta, ratio in rows[["kl_beta", "ood_ratio"]].drop_duplicates().itertuples(index=False):
        group = rows[(rows["kl_beta"] == beta) & (rows["ood_ratio"] == ratio)]
        yield {**about, "kl_beta": beta, "ood_ratio": ratio, **_columns(group, q="q", gain="gain")}


def _columns(rows: pd.DataFrame, **columns: str) -> dict[str, Any]:
    """Mean and interval of each column under a new name, and what they rest on: n is seeds times prompts."""
    out: dict[str, Any] = {}
    for name, column in columns.items():
        found = interval(rows, column)
        out |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        out |= {"n_seeds": found.seeds, "n": found.prompts}
    return out


# Figure 2

THEORY = [
    Line2D([], [], color="black", label="tilted optimum"),
    Line2D([], [], color="black", linestyle="--", label="paper's bound"),
    Line2D([], [], color="grey", linestyle=":", label="no change"),
]


@styled
def after_against_before(results: pd.DataFrame) -> Drawing | None:
    """P after GRPO against Q before it, a point a prompt, on logit axes: there the tilt is a shift by 1 / beta."""
    shown = [
        (f"{arm.short_name}:\n{ROLE_NAMES[role]} cells, β = {beta:g}", beta, _points(rows[rows["kl_beta"] == beta]))
        for arm in arms(results)
        for role in arm.roles
        if len(rows := arm.cells(role))
        for beta in sorted(rows["kl_beta"].unique().tolist())
    ]
    if not shown:
        return None
    data = pd.concat([points for _, _, points in shown], ignore_index=True)
    mass, ratios = mass_name(results), ratio_places(data)
    lowest = 10.0 ** np.floor(np.log10(data[["q", "p"]].to_numpy().min()))
    colours = {"cmap": ListedColormap(ratio_colours(len(ratios))), "vmin": -0.5, "vmax": len(ratios) - 0.5}
    figure, axes = panels(-(-len(shown) // 2), 2.3, around=1.3)
    for axis, (title, beta, points) in zip(axes.flat, shown, strict=False):
        axis.scatter(points["q"], points["p"], c=points["ood_ratio"].map(ratios), s=5, lw=0, alpha=0.6, **colours)
        axis.set_title(title)
        _theory(axis, lowest, beta)
        _logit_axes(axis, lowest)
    for axis in axes.flat[max(0, len(shown) - 2) : len(shown)]:
        axis.set_xlabel(f"{mass} before")
    for axis in axes[:, 0]:
        axis.set_ylabel("the same after: P")
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    sizes = pd.Series([len(points) for _, _, points in shown])
    seeds = pd.Series([points["seed"].nunique() for _, _, points in shown])
    note = f"{counted(sizes, 'prompt')} a panel, of {counted(seeds, 'seed')}"
    figure.legend(handles=THEORY, loc="outside upper center", ncols=3, title=note)
    ratio_legend(figure, ratios, "OOD samples in pretraining", "outside lower center", linestyle="", marker="o")
    tilt = "an upper limit of the optimum" if (results["samples"] == "trace").any() else "the optimum with a KL penalty"
    return Drawing(
        title="Each prompt after GRPO against before",
        caption="A point is a test prompt of one seed; axes are logit-scaled. Solid: the tilted distribution, "
        f"{tilt}, a shift by 1/β on these axes. Dashed: the paper's bound exp(1/β) Q. Without a KL penalty (β = 0) "
        f"neither limits P. At most {POINTS} prompts, drawn at random, for each panel and OOD ratio.",
        alt=f"{counted(pd.Series(len(shown)), 'scatter plot')} of correct mass after GRPO against before, with the "
        f"tilted optimum and the paper's bound. {(data['p'] > data['q']).mean():.0%} of the prompts shown gained mass.",
        figure=figure,
        data=data,
    )


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """A random part of the prompts of one panel in random order, so that no ratio lies on top; theory beside them."""
    rows = rows.sample(frac=1, random_state=0).groupby("ood_ratio").head(POINTS)
    q, p = (rows[column].clip(SMALLEST, LARGEST).to_numpy(dtype=float) for column in ("init_q", "q"))
    beta = float(rows["kl_beta"].iloc[0])
    about = rows[["layers", "prompts", "role", "kl_beta", "ood_ratio", "seed", "cell", "prompt_index"]]
    return about.assign(q=q, p=p, tilted_optimum=tilted(q, beta), paper_bound=paper_bound(q, beta))


def _theory(axis: Axes, lowest: float, beta: float) -> None:
    q = expit(np.linspace(logit(lowest), logit(LARGEST), 400))
    axis.plot(q, q, color="grey", linestyle=":")
    if beta > 0:
        axis.plot(q, tilted(q, beta).clip(max=LARGEST), color="black")
        axis.plot(q, paper_bound(q, beta).clip(max=LARGEST), color="black", linestyle="--")


def _logit_axes(axis: Axes, lowest: float) -> None:
    decades = round(-np.log10(lowest))
    step = 4 if decades > 5 else 2
    ticks = {10.0**-d: f"$10^{{-{d}}}$" for d in range(step, decades + 1, step)}
    ticks |= {0.5: "0.5", 1 - 10.0**-step: f"{1 - 10**-step}"}
    axis.set_xscale("logit")
    axis.set_yscale("logit")
    axis.minorticks_off()
    axis.set(xlim=(lowest, LARGEST), ylim=(lowest, LARGEST), box_aspect=1)
    axis.set_xticks(list(ticks), labels=list(ticks.values()))
    axis.set_yticks(list(ticks), labels=list(ticks.values()))


# Figure 3


@styled
def id_accuracy(results: pd.DataFrame) -> Drawing | None:
    """Greedy accuracy and mean Q on ID cells after each stage, against the OOD ratio; a row for each arm."""
    measured = results[results["role"] == "id"]
    if measured.empty:
        return None
    data = pd.DataFrame(list(_accuracy_rows(measured)))
    mass, ratios, stages = mass_name(results), ratio_places(data), _stage_series(data)
    rows = data[["layers", "prompts"]].drop_duplicates()
    figure, axes = panels(len(rows), 1.9)
    for (layers, prompts), (left, right) in zip(rows.itertuples(index=False), axes, strict=True):
        here = data[(data["layers"] == layers) & (data["prompts"] == prompts)]
        for one in stages:
            points = here[here["stage"] == one.key]
            intervals(left, points, "greedy", ratios, one, stages)
            intervals(right, points, "q", ratios, one, stages)
        arm = f"GRPO on {ROLE_NAMES[prompts]} prompts" if prompts else "Before GRPO"
        left.set_title(f"{arm}{_depth(data, layers)}: ID cells", loc="left")
        left.set(ylabel="greedy accuracy")
        right.set(ylabel=fill(f"mean {mass}", 20))
        for axis in (left, right):
            lowest = axis.get_ylim()[0]
            axis.set_ylim(lowest, 1 + 0.03 * (1 - lowest))  # 1 is the end of the scale
    ratio_axes(figure, axes, ratios)
    series_legend(figure, stages, data)
    return Drawing(
        title="In-distribution accuracy after each stage",
        caption="ID cells only. Left: share of test prompts whose most likely completion is right. Right: mean "
        f"{mass}. Axes need not start at 0. {BOOTSTRAP}",
        alt="ID accuracy after pretraining, SFT and GRPO against the OOD ratio. Greedy accuracy lies between "
        f"{data['greedy'].min():.3g} and {data['greedy'].max():.3g}.",
        figure=figure,
        data=data,
    )


def _accuracy_rows(measured: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each depth, arm, stage and ratio. What was before GRPO is repeated for every arm, to compare with."""
    betas = measured["kl_beta"].astype(float)
    names = {"pretrain": "pretraining", "sft": "SFT"}
    stages = [names.get(kind, f"GRPO, β = {beta:g}") for kind, beta in zip(measured["kind"], betas, strict=True)]
    measured = measured.assign(stage=stages, kl_beta=betas)
    for layers in sorted(measured["layers"].unique()):
        depth = measured[measured["layers"] == layers]
        for arm in [role for role in ROLE_NAMES if (depth["prompts"] == role).any()] or [""]:
            rows = depth[depth["prompts"].isna() | (depth["prompts"] == arm)]
            for stage, ratio in rows[["stage", "ood_ratio"]].drop_duplicates().itertuples(index=False):
                group = rows[(rows["stage"] == stage) & (rows["ood_ratio"] == ratio)]
                about = {"layers": layers, "prompts": arm, "stage": stage, "kl_beta": group["kl_beta"].iloc[0]}
                yield {**about, "ood_ratio": ratio, **_columns(group, greedy="greedy_correct", q="q")}


def _stage_series(data: pd.DataFrame) -> list[Series]:
    """Pretraining in grey, SFT as what is before GRPO, GRPO by beta as in figure 1."""
    sft, *betas = before_and_betas(data["kl_beta"])
    names = {"pretraining": ("#999999", "h"), "SFT": sft.look} | {f"GRPO, β = {b.key:g}": b.look for b in betas}
    return [Series(name, name, look) for name, look in names.items() if (data["stage"] == name).any()]


# Figure 4


@styled
def training_curves(curves: pd.DataFrame) -> Drawing | None:
    """Reward and KL to the reference over GRPO steps, a line an OOD ratio; a row for each arm and beta."""
    logged = curves[(curves["kind"] == "grpo") & curves["metric"].isin(["rollout/reward", "grpo/kl"])]
    # Without a penalty there is no reference: the KL is logged as 0, but it was not computed.
    logged = logged[(logged["metric"] != "grpo/kl") | (logged["kl_beta"] > 0)]
    if logged.empty:
        return None
    keys = ["layers", "prompts", "kl_beta", "metric", "ood_ratio", "step"]
    data = logged.groupby(keys)["value"].agg(["mean", "min", "max", "size"]).reset_index()
    data = data.set_axis([*keys, "mean", "lowest", "highest", "n_seeds"], axis=1)
    ratios = ratio_places(data)
    rows = data[["layers", "prompts", "kl_beta"]].drop_duplicates()
    figure, axes = panels(len(rows), 1.6)
    for (layers, prompts, beta), (left, right) in zip(rows.itertuples(index=False), axes, strict=True):
        here = data[(data["layers"] == layers) & (data["prompts"] == prompts) & (data["kl_beta"] == beta)]
        _bands(left, here[here["metric"] == "rollout/reward"], ratios)
        _bands(right, here[here["metric"] == "grpo/kl"], ratios)
        left.set_title(f"GRPO on {ROLE_NAMES[prompts]} prompts{_depth(data, layers)}, β = {beta:g}", loc="left")
        left.set(ylabel="reward (share correct)", ylim=(-0.03, 1.03))
        right.set(ylabel="KL to init (nats)")
        right.set_ylim(bottom=0)
        if beta == 0:
            right.set_axis_off()
            right.text(0.5, 0.5, "KL is not computed\nat β = 0", ha="center", va="center", transform=right.transAxes)
    figure.supxlabel("GRPO step", fontsize="medium")
    ratio_legend(figure, ratios, f"OOD samples in pretraining; band: all of {counted(data['n_seeds'], 'seed')}")
    last = data[(data["metric"] == "rollout/reward") & (data["step"] == data["step"].max())]["mean"]
    return Drawing(
        title="Reward and KL during GRPO",
        caption="Left: mean reward of a step's completions, 1 if correct, else 0. Right: KL divergence from the init, "
        "in nats a completion. Lines are means over seeds, bands reach from the lowest to the highest seed.",
        alt="Reward and KL over GRPO steps, a line for each OOD ratio. At the last step mean rewards lie between "
        f"{last.min():.2g} and {last.max():.2g}.",
        figure=figure,
        data=data,
    )


def _bands(axis: Axes, lines: pd.DataFrame, ratios: dict[Any, int]) -> None:
    colours = ratio_colours(len(ratios))
    for ratio, line in lines.groupby("ood_ratio"):
        axis.plot(line["step"], line["mean"], color=colours[ratios[ratio]])
        axis.fill_between(line["step"], line["lowest"], line["highest"], color=colours[ratios[ratio]], alpha=0.2, lw=0)


def _depth(data: pd.DataFrame, layers: int) -> str:
    """The depth as part of a title, in a study of several."""
    return f", {layers} layers" if data["layers"].nunique() > 1 else ""
