"""Measured P beside what theory says of the optimum, the tilt by exp(1/beta), and of GRPO as it is run, prompt by
prompt.

Probabilities are cut to [``SMALLEST``, ``LARGEST``] for the axes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from scipy.special import expit, logit

from rayexp.evaluation.statistics import summarised
from rayexp.evaluation.theory import gain, paper_bound, peak, tilted
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, Arm, arms, counted, mass_name, percent
from rayexp.reports.drawing import (
    BOOTSTRAP,
    ReportFigure,
    bars,
    grid,
    lines,
    on_page,
    ratio_colours,
    ratio_legend,
    ratio_places,
    ratio_rows,
    require_room,
    taller,
)
from rayexp.reports.explore import ARM_CELL, PICKS, over_mass

#: Columns of which each combination has a panel.
PANEL = ["condition", "prompt_role", "role", "kl_beta"]
#: What the scatter plots draw at most, for each panel and ratio: more points would hide one another.
POINTS = 300
#: Range of probability axes. Above it, float32 log-probabilities can hardly tell values apart.
SMALLEST, LARGEST = 1e-12, 1 - 1e-6
#: Width of a bin of Q, in nats of its logit, and how many prompts one needs to be drawn.
BIN_NATS, BIN_PROMPTS = 2.0, 10

Panel = tuple[str, float, pd.DataFrame]  # title, beta, rows of the arm


def _panels(results: pd.DataFrame) -> list[Panel]:
    """Return a panel for each arm, role of its cells, and beta."""
    return [
        (f"{lines(arm.short_name)}:\n{ROLE_NAMES[role]} cells, β = {number(beta)}", beta, rows[rows["kl_beta"] == beta])
        for arm in arms(results)
        for role in arm.roles
        if len(rows := arm.cells(role))
        for beta in sorted(rows["kl_beta"].unique().tolist())
    ]


# P against Q


@on_page(
    "Each prompt after GRPO against before",
    place=3,
    explore=over_mass(
        "p", "correct mass after GRPO", "tilted_optimum", ("condition", ARM_CELL, "kl_beta"), logits=True
    ),
)
def after_against_before(results: pd.DataFrame) -> ReportFigure | None:
    """Draw P after GRPO against Q before it, a point a prompt, on logit axes: there the tilt is a shift by 1 / beta."""
    shown = [(title, beta, _points(rows)) for title, beta, rows in _panels(results)]
    if not shown:
        return None
    data = pd.concat([points for _, _, points in shown], ignore_index=True)
    require_room(data, PANEL, "ood_ratio")
    mass, ratios = mass_name(results), ratio_places(data)
    lowest = 10.0 ** np.floor(np.log10(data[["q", "p"]].to_numpy().min()))
    colours = {"cmap": ListedColormap(ratio_colours(len(ratios))), "vmin": -0.5, "vmax": len(ratios) - 0.5}
    figure, axes = grid(len(shown), 2.3 + taller(data["condition"]), around=1.3 + ratio_rows(ratios))
    for axis, (title, beta, points) in zip(axes.flat, shown, strict=False):
        places = points["ood_ratio"].map(ratios)
        axis.scatter(points["q"], points["p"], c=places, s=5, lw=0, alpha=0.6, rasterized=True, **colours)
        axis.plot(points["q"], points["fixed_point"], "k.", markersize=1.2, rasterized=True)
        axis.set_title(title)
        _theory(axis, lowest, beta)
        _logit_scale(axis, "x", lowest)
        _logit_scale(axis, "y", lowest)
        axis.set_box_aspect(1)
    _outer_labels(axes, len(shown), f"{mass} before", "the same after: P")
    sizes = pd.Series([len(points) for _, _, points in shown])
    seeds = pd.Series([points["seed"].nunique() for _, _, points in shown])
    note = f"{counted(sizes, 'prompt')} a panel, of {counted(seeds, 'seed')}"
    theory = [
        Line2D([], [], color="black", label="tilted optimum"),
        Line2D([], [], color="black", linestyle="--", label="paper's bound"),
        Line2D([], [], color="grey", linestyle=":", label="no change"),
    ]
    if data["fixed_point"].notna().any():
        theory.append(Line2D([], [], color="black", marker=".", linestyle="", label="GRPO as run"))
    figure.legend(handles=theory, loc="outside upper center", ncols=2, title=note)
    ratio_legend(figure, ratios, "OOD samples in pretraining", "outside lower center", linestyle="", marker="o")
    tilt = "an upper limit of the optimum" if not results["exact"].all() else "the optimum with a KL penalty"
    return ReportFigure(
        caption="A point is a test prompt of one seed; axes are logit-scaled. Solid: the tilted distribution, "
        f"{tilt}, a shift by 1/β on these axes. Dashed: the paper's bound exp(1/β) Q. Without a KL penalty (β = 0) "
        f"neither limits P. {_as_run(results)}At most {POINTS} prompts, drawn at random, for each panel and OOD "
        "ratio.",
        alt=f"{counted(pd.Series(len(shown)), 'scatter plot')} of correct mass after GRPO against before, with the "
        "tilted optimum, the paper's bound and the fixed points of GRPO as run. "
        f"{(data['p'] > data['q']).mean():.0%} of the prompts shown gained mass.",
        figure=figure,
        data=data,
    )


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """Draw a random part of the prompts of one panel in random order, so that no ratio lies on top; theory beside
    them."""
    rows = rows.sample(frac=1, random_state=0).groupby("ood_ratio").head(POINTS)
    q, p = (rows[column].clip(SMALLEST, LARGEST).to_numpy(dtype=float) for column in ("init_q", "q"))
    beta = float(rows["kl_beta"].iloc[0])
    about = rows[["condition", "layers", "prompt_role", "role", "kl_beta", "ood_ratio", "seed", "cell", "prompt_index"]]
    point = rows["fixed_point"].clip(SMALLEST, LARGEST)
    return about.assign(q=q, p=p, tilted_optimum=tilted(q, beta), paper_bound=paper_bound(q, beta), fixed_point=point)


def _as_run(results: pd.DataFrame) -> str:
    """Describe the fixed points of GRPO as it is run, and why some are not known."""
    rows = results[results["kl_beta"].notna()]
    reasons = "; ".join(filter(None, rows["beyond_theory"].unique()))
    drawn = "Black dots: the fixed point of GRPO as it is run, from the masses of each prompt's tokens. "
    return drawn * bool(rows["fixed_point"].notna().any()) + f"It is not known everywhere: {reasons}. " * bool(reasons)


def _theory(axis: Axes, lowest: float, beta: float) -> None:
    q = expit(np.linspace(logit(lowest), logit(LARGEST), 400))
    axis.plot(q, q, color="grey", linestyle=":")
    if beta > 0:
        axis.plot(q, tilted(q, beta).clip(max=LARGEST), color="black")
        axis.plot(q, paper_bound(q, beta).clip(max=LARGEST), color="black", linestyle="--")


def _logit_scale(axis: Axes, which: str, lowest: float) -> None:
    decades = round(-np.log10(lowest))
    step = 4 if decades > 5 else 2
    ticks = {10.0**-d: f"$10^{{-{d}}}$" for d in range(step, decades + 1, step)}
    ticks |= {0.5: "0.5", 1 - 10.0**-step: f"{1 - 10**-step}"}
    axis.set(**{f"{which}scale": "logit", f"{which}lim": (lowest, LARGEST)})
    axis.minorticks_off()
    getattr(axis, f"set_{which}ticks")(list(ticks), labels=list(ticks.values()))


def _outer_labels(axes: np.ndarray, shown: int, x: str, y: str) -> None:
    """Write labels below and left of a grid of panels whose last one may be empty."""
    for axis in axes.flat[max(0, shown - axes.shape[1]) : shown]:
        axis.set_xlabel(x)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)


# The shift of the logit


@on_page("How far logits moved, against 1/β", place=4)
def logit_shift(results: pd.DataFrame) -> ReportFigure | None:
    """Draw the mean of logit P - logit Q against 1 / beta, which it is at the optimum; a panel for each arm and
    role."""
    shown = [(arm, role) for arm in arms(results) for role in arm.roles if (arm.cells(role)["kl_beta"] > 0).any()]
    if not shown:
        return None
    data = pd.DataFrame([row for arm, role in shown for row in _shift_rows(arm, role)])
    require_room(data, ["condition", "prompt_role", "role"], "ood_ratio")
    ratios = ratio_places(data)
    colours = ratio_colours(len(ratios))
    largest_tilt = data["inverse_beta"].max()
    figure, axes = grid(len(shown), 2.2 + taller(data["condition"]), around=1.0 + ratio_rows(ratios))
    for axis, (arm, role) in zip(axes.flat, shown, strict=False):
        here = arm.of(data[data["role"] == role])
        axis.plot([0, 1.12 * largest_tilt], [0, 1.12 * largest_tilt], color="black")
        axis.axhline(0, color="grey", linestyle=":")
        for ratio, points in here.groupby("ood_ratio"):
            place = ratios[ratio]
            aside = 0.02 * largest_tilt * (place - (len(ratios) - 1) / 2)
            bars(axis, points["inverse_beta"] + aside, points, "shift", (colours[place], "o", ""))
        axis.set_title(f"{lines(arm.short_name)}:\n{ROLE_NAMES[role]} cells")
    _outer_labels(axes, len(shown), "1/β", "mean logit P - logit Q (nats)")
    note = f"OOD samples in pretraining; {counted(data['n_seeds'], 'seed')}, bars: 95 % interval"
    ratio_legend(figure, ratios, note, linestyle="", marker="o")
    largest = data.iloc[int(data["shift"].argmax())]
    return ReportFigure(
        caption="Mean over test prompts of logit P - logit Q, the shift that GRPO made. At the optimum with a KL "
        "penalty it is 1/β for every prompt (line). Below the line: GRPO stopped short of the optimum, or found "
        "nothing to learn from; above it: GRPO's own normalisation, or what prompts learn from one another. Points "
        f"of one β are moved apart sideways. Above {LARGEST} float32 can't tell probabilities apart and they count as "
        f"that, so shifts that end there are larger than they look. {BOOTSTRAP}",
        alt="Mean shift of the logit of the correct mass against 1/β, with the line of the optimum. The largest is "
        f"{largest['shift']:.2g} nats, at β = {number(largest['kl_beta'])} and {percent(largest['ood_ratio'])} % OOD.",
        figure=figure,
        data=data,
    )


def _shift_rows(arm: Arm, role: str) -> Iterator[dict[str, Any]]:
    rows = arm.cells(role)
    rows = rows[rows["kl_beta"] > 0]
    # No limit below but that of float64: where there was next to no mass, a shift is a shift all the same.
    q, p = (rows[column].clip(np.finfo(float).tiny, LARGEST).to_numpy(dtype=float) for column in ("init_q", "q"))
    rows = rows.assign(shift=logit(p) - logit(q))
    for beta, ratio in rows[["kl_beta", "ood_ratio"]].drop_duplicates().itertuples(index=False):
        group = rows[(rows["kl_beta"] == beta) & (rows["ood_ratio"] == ratio)]
        about = {**arm.about, "role": role, "kl_beta": beta, "inverse_beta": 1 / beta}
        yield {**about, "ood_ratio": ratio, **summarised(group, shift="shift")}


# The gain against Q


@on_page(
    "Where the gain is: against the mass before",
    place=5,
    explore=over_mass("gain", "mean gain", "predicted_gain", (*PICKS, "kl_beta"), logits=False),
)
def gain_by_mass(results: pd.DataFrame) -> ReportFigure | None:
    """Draw the mean gain of prompts of each OOD ratio, binned by Q before GRPO, with the gain of the optimum and its
    peak."""
    shown = [(title, beta, points) for title, beta, rows in _panels(results) if len(points := _binned(rows))]
    if not shown:
        return None
    data = pd.concat([points for _, _, points in shown], ignore_index=True)
    require_room(data, PANEL, "ood_ratio")
    mass, ratios = mass_name(results), ratio_places(data)
    colours = ratio_colours(len(ratios))
    lowest = 10.0 ** np.floor(np.log10(data["q"].min()))
    q = expit(np.linspace(logit(lowest), logit(LARGEST), 400))
    figure, axes = grid(len(shown), 1.9 + taller(data["condition"]), around=1.3 + ratio_rows(ratios))
    for axis, (title, beta, points) in zip(axes.flat, shown, strict=False):
        axis.plot(q, gain(q, beta), color="black")
        where, height = peak(beta)
        axis.plot(max(where, lowest), height, color="black", marker="*", markersize=9)
        axis.axhline(0, color="grey", linestyle=":")
        for ratio, line in points.groupby("ood_ratio"):
            bars(axis, line["q"], line, "gain", (colours[ratios[ratio]], "o", "-"))
        axis.set_title(title)
        _logit_scale(axis, "x", lowest)
    _outer_labels(axes, len(shown), f"{mass} before", "gain: mean P - Q")
    theory = Line2D([], [], color="black", marker="*", markersize=9, label="tilted optimum and its peak")
    title = f"{counted(data['n_seeds'], 'seed')}; bars: 95 % interval"
    figure.legend(handles=[theory], loc="outside upper center", title=title)
    ratio_legend(figure, ratios, "OOD samples in pretraining", "outside lower center", marker="o")
    best = data.iloc[int(data["gain"].argmax())]
    return ReportFigure(
        caption=f"Test prompts of an OOD ratio, of all seeds, in bins of {mass} before GRPO ({BIN_NATS:g} nats of its "
        f"logit wide, at least {BIN_PROMPTS} prompts each), at the median of the bin. Black: the gain of the optimum, "
        "with its peak at Q = 1/(1 + exp(1/(2β))), of height tanh(1/(4β)); without a KL penalty it is 1 - Q. The data "
        f"hold the predicted mean gain of each bin's own prompts too. {BOOTSTRAP}",
        alt="Mean gain of prompts binned by correct mass before GRPO, with the curve of the tilted optimum. The "
        f"largest mean gain, {best['gain']:.2g}, is in the bin around Q = {best['q']:.2g} at a KL beta of "
        f"{number(best['kl_beta'])} and {percent(best['ood_ratio'])} % OOD.",
        figure=figure,
        data=data,
    )


def _binned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each OOD ratio and bin of Q with enough prompts."""
    beta = float(rows["kl_beta"].iloc[0])
    q = rows["init_q"].clip(SMALLEST, LARGEST).to_numpy(dtype=float)
    rows = rows.assign(cut=q, predicted=gain(q, beta), bin=np.floor(logit(q) / BIN_NATS))
    each = rows[["ood_ratio", "bin"]].drop_duplicates().sort_values(["ood_ratio", "bin"])
    about = rows[["condition", "layers", "prompt_role", "role", "kl_beta"]].iloc[0].to_dict()
    return pd.DataFrame(
        [
            {**about, "ood_ratio": ratio, "q_from": expit(BIN_NATS * this), "q_to": expit(BIN_NATS * (this + 1))}
            | {"q": group["cut"].median(), **summarised(group, gain="gain")}
            | {"predicted_gain": group["predicted"].mean()}
            for ratio, this in each.itertuples(index=False)
            if len(group := rows[(rows["ood_ratio"] == ratio) & (rows["bin"] == this)]) >= BIN_PROMPTS
        ]
    )
