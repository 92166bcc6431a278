"""pass@k before and after GRPO: whether what k samples reach grew, or was only moved to fewer of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rayexp.evaluation.metrics import pass_at_k, pass_at_k_sampled
from rayexp.reports.arms import Arm, arms, counted
from rayexp.reports.bands import band_panels
from rayexp.reports.drawing import ReportFigure, on_page
from rayexp.reports.explore import over_numbers

#: Values of k, four a decade, up to a million.
KS = np.unique(np.round(10 ** np.arange(0, 6.01, 0.25)).astype(int))


@on_page(
    "pass@k before and after GRPO",
    place=6,
    explore=over_numbers("k", "mean", "kl_beta", ("condition", "prompt_role", "ood_ratio"), scale="log"),
)
def pass_at_k_curves(results: pd.DataFrame) -> ReportFigure | None:
    """Draw mean pass@k over prompts of the target cells, before GRPO and after; a panel for each arm and OOD ratio."""
    data = pd.DataFrame([row for arm in arms(results) for row in _rows(arm, results)])
    if data.empty:
        return None
    figure, axes = band_panels(data, arms(results), "k", "mean")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean pass@k")
    figure.supxlabel("k, completions drawn", fontsize="medium")
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
    """Return a row for each OOD ratio, beta (None before GRPO) and k."""
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
    """Return values of k, and the mean over the prompts of one seed of pass@k at each: from Q, or, for traces, whose Q
    is only known from below, from the sampled answers, up to their number."""
    sampled = int(rows["sampled"].min())
    if not sampled:
        q = rows["q"].to_numpy(dtype=float)
        return KS, [float(pass_at_k(q, int(k)).mean()) for k in KS]
    ks = np.unique(np.minimum(KS, sampled))
    return ks, [float(pass_at_k_sampled(sampled, rows["answer_correct"].to_numpy(), int(k)).mean()) for k in ks]
