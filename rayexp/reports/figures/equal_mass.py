"""Conditions compared where they start from the same mass.

Decoders of two sizes, or of two kinds of pretraining, differ in what they know at one OOD ratio, and so in what GRPO
can gain. Whether GRPO itself does something else with them shows only between decoders of about the same mean Q.
"""

from itertools import pairwise

import pandas as pd
from matplotlib.lines import Line2D

from rayexp.evaluation.statistics import summarised
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, TARGET_OF, arms, counted, mass_name
from rayexp.reports.drawing import BOOTSTRAP, LINE_STYLES, ReportFigure, bars, grid, lines, on_page, require_room
from rayexp.reports.explore import ARM, over_numbers

#: Ends of the bands of mean Q before GRPO within which decoders are compared.
BANDS = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
#: Columns of which each combination has a panel.
PANEL = ["prompt_role", "role", "kl_beta"]
#: Where decoders without any mass that can be drawn stand.
LEFTMOST = 1e-5


@on_page(
    "Conditions at equal mass before GRPO",
    place=2,
    explore=over_numbers("drawn_q", "gain", "condition", (ARM, "kl_beta"), scale="log"),
)
def gain_at_equal_mass(results: pd.DataFrame) -> ReportFigure | None:
    """Draw the mean gain on the target cells against mean Q before GRPO, in bands of it; a panel for each role of
    GRPO's prompts and beta, a colour for each condition. None for a study of one condition."""
    if len({arm.condition for arm in arms(results)}) < 2:
        return None
    data = at_equal_mass(results)
    require_room(data, PANEL, "condition")
    mass = mass_name(results)
    styles = dict(zip(data["condition"].unique().tolist(), LINE_STYLES[1:], strict=False))
    shown = data[PANEL].drop_duplicates().to_dict("records")
    figure, axes = grid(len(shown), 2.0, around=0.8 + 0.17 * sum(lines(name, 50).count("\n") + 1 for name in styles))
    for axis, panel in zip(axes.flat, shown, strict=False):
        here = data.merge(pd.DataFrame([panel]))
        for condition, style in styles.items():
            points = here[here["condition"] == condition]
            bars(axis, points["drawn_q"], points, "gain", style)
        for end in BANDS[1:-1]:
            axis.axvline(end, color="grey", linewidth=0.6, linestyle=":")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xscale="log", xlim=(LEFTMOST * 0.7, 1.3))
        prompts, cells = ROLE_NAMES[panel["prompt_role"]], ROLE_NAMES[panel["role"]]
        axis.set_title(f"{prompts} prompts:\n{cells} cells, β = {number(panel['kl_beta'])}")
    for axis in axes[:, 0]:
        axis.set_ylabel("gain: mean P - Q")
    figure.supxlabel(f"mean {mass} before GRPO", fontsize="medium")
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=lines(name, 50))
        for name, style in styles.items()
    ]
    note = f"{counted(data['decoders'], 'decoder')} a point; bars: 95 % interval"
    figure.legend(handles=handles, loc="outside upper center", title=note)
    best = data.iloc[int(data["gain"].argmax())]
    return ReportFigure(
        caption=f"A point is the mean over the decoders of a condition whose mean {mass} before GRPO, on the cells in "
        "question, lies in one band (dotted ends), whatever their OOD ratio: within a band conditions start from about "
        f"the same mass. Less than {LEFTMOST:g} stands at the left end. {BOOTSTRAP}",
        alt=f"Gain of {len(styles)} conditions in bands of the mean mass before GRPO. The largest, {best['gain']:.2g}, "
        f"is from a mean Q of {best['q']:.2g}, in the condition {best['condition']}.",
        figure=figure,
        data=data,
    )


def at_equal_mass(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each arm, beta and band of mean Q before GRPO of decoders on the target cells: how many
    decoders, their mean Q and mean gain with its interval, and the lowest and highest gain of one of them.

    A decoder is one seed at one OOD ratio.
    """
    rows = []
    for arm in arms(results):
        target = arm.cells(arm.target).assign(role=TARGET_OF[arm.prompt_role])
        for beta, of_beta in target.groupby("kl_beta"):
            means = of_beta.groupby(["ood_ratio", "seed"])[["init_q", "gain"]].transform("mean")
            for low, high in pairwise(BANDS):
                here = (means["init_q"] >= low) & ((means["init_q"] < high) | (high == BANDS[-1]))
                if not here.any():
                    continue
                group = of_beta[here]
                about = {**arm.about, "role": arm.target, "kl_beta": beta, "q_from": low, "q_to": high}
                counts = {"decoders": len(group[["ood_ratio", "seed"]].drop_duplicates()), "q": group["init_q"].mean()}
                counts["drawn_q"] = max(counts["q"], LEFTMOST)
                ends = {"lowest": means["gain"][here].min(), "highest": means["gain"][here].max()}
                rows.append({**about, **counts, **summarised(group, gain="gain"), **ends})
    return pd.DataFrame(rows)
