"""pass@k before and after GRPO: whether what k samples reach grew, or was only moved to fewer of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rayexp.evaluation.metrics import pass_at_k, pass_at_k_sampled
from rayexp.reports.arms import ROLE_NAMES, Arm, arms, counted, percent
from rayexp.reports.drawing import (
    ReportFigure,
    before_and_betas,
    grid,
    legend_rows,
    lines,
    on_page,
    require_room,
    series_legend,
    taller,
)

#: Values of k, four a decade, up to a million.
KS = np.unique(np.round(10 ** np.arange(0, 6.01, 0.25)).astype(int))


@on_page("pass@k before and after GRPO", place=6)
def pass_at_k_curves(results: pd.DataFrame) -> ReportFigure | None:
    """Mean pass@k over prompts of the target cells, before GRPO and after; a panel for each arm and OOD ratio."""
    data = pd.DataFrame([row for arm in arms(results) for row in _rows(arm, results)])
    if data.empty:
        return None
    require_room(data, ["condition", "prompt_role", "ood_ratio"], "kl_beta")
    series = before_and_betas(data["kl_beta"])
    found = [(arm, ratio) for arm in arms(results) for ratio in arm.of(data)["ood_ratio"].unique().tolist()]
    figure, axes = grid(len(found), 1.8 + taller(data["condition"]), around=0.9 + legend_rows(series))
    for axis, (arm, ratio) in zip(axes.flat, found, strict=False):
        here = arm.of(data[data["ood_ratio"] == ratio])
        for one in series:
            line = here[here["kl_beta"].isna() if one.key is None else here["kl_beta"] == one.key]
            axis.plot(line["k"], line["mean"], color=one.style.colour, linestyle=one.line)
            axis.fill_between(line["k"], line["lowest"], line["highest"], color=one.style.colour, alpha=0.15, lw=0)
        cells = f"{ROLE_NAMES[arm.target]} cells, {percent(ratio)} % OOD"
        axis.set_title(f"{lines(arm.short_name)}:\n{cells}")
        axis.set(xscale="log", ylim=(-0.03, 1.03), xlim=(1, data["k"].max()))
        axis.minorticks_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("mean pass@k")
    figure.supxlabel("k, completions drawn", fontsize="medium")
    series_legend(figure, series, data, spread="band: all seeds", lines_only=True)
    exact = (results["sampled"] == 0).all()
    source = "Exact for every k, from Q: 1 - (1 - Q)^k." if exact else "Unbiased estimates from the sampled answers."
    last = data[data["k"] == data["k"].max()]
    return ReportFigure(
        caption=f"Mean over test prompts of the chance that one of k completions is right. {source} Where a curve "
        "after GRPO runs below the one before it, GRPO gave up prompts that many samples had still reached. Lines are "
        "means over seeds, bands reach from the lowest to the highest seed.",
        alt=f"Mean pass@k against k from 1 to {data['k'].max():,}, before GRPO and after, for "
        f"{counted(pd.Series(data['ood_ratio'].nunique()), 'OOD ratio')}. At the largest k, means lie between "
        f"{last['mean'].min():.2g} and {last['mean'].max():.2g}.",
        figure=figure,
        data=data,
    )


def _rows(arm: Arm, results: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each OOD ratio, beta (None before GRPO) and k."""
    after = arm.cells(arm.target)
    inits = results[results["stage_id"].isin(after["init_id"]) & results["cell"].isin(after["cell"])]
    for ratio in sorted(after["ood_ratio"].unique().tolist()):
        betas = sorted(after[after["ood_ratio"] == ratio]["kl_beta"].unique().tolist())
        for beta in (None, *betas):
            rows = inits if beta is None else after[after["kl_beta"] == beta]
            rows = rows[rows["ood_ratio"] == ratio]
            ks, means = zip(*[_means(group) for _, group in rows.groupby("seed")], strict=True)
            about = {**arm.about, "role": arm.target}
            about |= {"ood_ratio": ratio, "kl_beta": beta, "n_seeds": len(means), "n": len(rows)}
            for k, column in zip(ks[0], zip(*means, strict=True), strict=True):
                found = {"mean": np.mean(column), "lowest": min(column), "highest": max(column)}
                yield {**about, "k": int(k), **found}


def _means(rows: pd.DataFrame) -> tuple[np.ndarray, list[float]]:
    """Values of k, and the mean over the prompts of one seed of pass@k at each: from Q, or, for traces, whose Q is only
    known from below, from the sampled answers, up to their number."""
    sampled = int(rows["sampled"].min())
    if not sampled:
        q = rows["q"].to_numpy(dtype=float)
        return KS, [float(pass_at_k(q, int(k)).mean()) for k in KS]
    ks = np.unique(np.minimum(KS, sampled))
    return ks, [float(pass_at_k_sampled(sampled, rows["answer_correct"].to_numpy(), int(k)).mean()) for k in ks]
