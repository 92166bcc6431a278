"""Numbers that GRPO logged at every step: a line for each OOD ratio, the mean over seeds, in a band of all seeds."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, counted, title_suffix
from rayexp.reports.drawing import (
    WIDE,
    ReportFigure,
    lines,
    on_page,
    panels,
    ratio_colours,
    ratio_legend,
    ratio_places,
    ratio_rows,
    require_room,
    taller,
)
from rayexp.reports.explore import over_numbers

SEEDS = "Lines are means over seeds, bands reach from the lowest to the highest seed."


@dataclass(frozen=True)
class Curve:
    """One metric of one side of a figure: its name in the metric log, its axis, and what the axis shows at least."""

    metric: str
    label: str
    limits: tuple[float, float | None] = (0.0, None)


REWARD = Curve("rollout/reward", "reward", (-0.03, 1.03))
KL = Curve("grpo/kl", "KL (nats)")
ENTROPY = Curve("grpo/entropy", "entropy (nats)")
MISMATCH = Curve("grpo/max_logprob_mismatch", "mismatch (nats)")


@on_page(
    "Reward and KL during GRPO",
    place=1,
    of="curves",
    explore=over_numbers("step", "mean", "ood_ratio", ("metric", "condition", "prompt_role", "kl_beta")),
)
def reward_and_kl(curves: pd.DataFrame) -> ReportFigure | None:
    """Draw reward and KL to the reference over GRPO steps; a row for each arm and beta."""
    # Without a penalty there is no reference: the KL is not computed.
    logged = curves[(curves["metric"] != KL.metric) | (curves["kl_beta"] > 0)]
    data = _summarised(logged, (REWARD, KL))
    if data.empty:
        return None
    last = data[(data["metric"] == REWARD.metric) & (data["step"] == data["step"].max())]["mean"]
    return ReportFigure(
        caption="Left: mean reward of a step's completions; with the reward answer, the share that is right. Right: KL "
        f"divergence from the reference, in nats a completion. {SEEDS}",
        alt="Reward and KL over GRPO steps, a line for each OOD ratio. At the last step mean rewards lie between "
        f"{last.min():.2g} and {last.max():.2g}.",
        figure=_drawn(data, REWARD, KL),
        data=data,
    )


@on_page("Entropy and sampler mismatch during GRPO", place=2, of="curves")
def entropy_and_mismatch(curves: pd.DataFrame) -> ReportFigure | None:
    """Draw the entropy of the policy, and how far sampler and learner disagree, over GRPO steps; a row for each arm and
    beta."""
    data = _summarised(curves, (ENTROPY, MISMATCH))
    if data.empty:
        return None
    entropy, mismatch = (data[data["metric"] == curve.metric] for curve in (ENTROPY, MISMATCH))
    return ReportFigure(
        caption="Left: mean entropy of the policy's next token along its completions. Right: the largest difference, "
        "among the tokens of a step, between the log-probability that the sampler gave a token and the learner's; a "
        f"step where it is above the allowed limit stops the run. {SEEDS}",
        alt="Entropy and sampler mismatch over GRPO steps, a line for each OOD ratio. Mean entropies lie between "
        f"{entropy['mean'].min():.2g} and {entropy['mean'].max():.2g} nats; the largest mismatch of all is "
        f"{mismatch['highest'].max():.2g} nats.",
        figure=_drawn(data, ENTROPY, MISMATCH),
        data=data,
    )


def _summarised(curves: pd.DataFrame, wanted: tuple[Curve, Curve]) -> pd.DataFrame:
    logged = curves[curves["kl_beta"].notna() & curves["metric"].isin([curve.metric for curve in wanted])]
    keys = ["condition", "layers", "prompt_role", "kl_beta", "metric", "ood_ratio", "step"]
    # In the order of the plan, where 4 layers come before 16.
    order = pd.Categorical(logged["condition"], logged["condition"].unique())
    grouped = logged.assign(condition=order).groupby(keys, observed=True)["value"]
    data = grouped.agg(["mean", "min", "max", "size"]).reset_index().astype({"condition": str})
    return data.set_axis([*keys, "mean", "lowest", "highest", "n_seeds"], axis=1)


def _drawn(data: pd.DataFrame, *sides: Curve):
    """Draw a row of panels for each arm and beta, a column for each of two curves."""
    of_row = ["condition", "prompt_role", "kl_beta"]
    require_room(data, of_row, "ood_ratio", sides=2)
    ratios, rows = ratio_places(data), data[of_row].drop_duplicates()
    figure, axes = panels(len(rows), 1.7 + taller(data["condition"], WIDE), 0.8 + ratio_rows(ratios))
    for (condition, prompts, beta), row in zip(rows.itertuples(index=False), axes, strict=True):
        here = data[(data["condition"] == condition) & (data["prompt_role"] == prompts) & (data["kl_beta"] == beta)]
        title = f"GRPO on {ROLE_NAMES[prompts]} prompts{title_suffix(condition)}, β = {number(beta)}"
        row[0].set_title(lines(title, WIDE), loc="left")
        for axis, curve in zip(row, sides, strict=True):
            logged = here[here["metric"] == curve.metric]
            if logged.empty:
                axis.set_axis_off()
                why = f"{curve.label.split(' (')[0]} is not computed\nat β = {number(beta)}"
                axis.text(0.5, 0.5, why, ha="center", va="center", transform=axis.transAxes)
                continue
            _bands(axis, logged, ratios)
            axis.set(ylabel=curve.label, ylim=_limits(curve, logged))
    figure.supxlabel("GRPO step", fontsize="medium")
    ratio_legend(figure, ratios, f"OOD samples in pretraining; band: all of {counted(data['n_seeds'], 'seed')}")
    return figure


def _limits(curve: Curve, logged: pd.DataFrame) -> tuple[float, float | None]:
    """Return the range of a curve's axis: wider than usual where rewards are negative or above 1."""
    low, high = curve.limits
    lowest, highest = logged["lowest"].min(), logged["highest"].max()
    margin = 0.03 * (highest - lowest)
    if lowest < low:
        low = lowest - margin
    if high is not None and highest > high:
        high = highest + margin
    return low, high


def _bands(axis: Axes, logged: pd.DataFrame, ratios: dict[Any, int]) -> None:
    colours = ratio_colours(len(ratios))
    for ratio, line in logged.groupby("ood_ratio"):
        axis.plot(line["step"], line["mean"], color=colours[ratios[ratio]])
        axis.fill_between(line["step"], line["lowest"], line["highest"], color=colours[ratios[ratio]], alpha=0.2, lw=0)
