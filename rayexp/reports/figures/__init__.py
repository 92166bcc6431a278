"""The figures of a report, each with the exact table that it draws. One row of panels for each arm of the study."""

from collections.abc import Callable

import pandas as pd

from rayexp.reports import headless as headless  # before anything else that imports matplotlib
from rayexp.reports.drawing import ReportFigure
from rayexp.reports.figures.curves import entropy_and_mismatch, reward_and_kl
from rayexp.reports.figures.mass import mass_by_ratio, mass_by_stage
from rayexp.reports.figures.pass_at_k import pass_at_k_curves
from rayexp.reports.figures.tilt import after_against_before, gain_by_mass, logit_shift

#: What draws a figure, by its title; None where there is no data for it.
Figures = dict[str, Callable[[pd.DataFrame], ReportFigure | None]]
#: From ``table.results``.
MEASURED: Figures = {
    "Correct mass before and after GRPO": mass_by_ratio,
    "Each stage, in and out of distribution": mass_by_stage,
    "Each prompt after GRPO against before": after_against_before,
    "How far logits moved, against 1/β": logit_shift,
    "Where the gain is: against the mass before": gain_by_mass,
    "pass@k before and after GRPO": pass_at_k_curves,
}
#: From ``table.curves``.
LOGGED: Figures = {
    "Reward and KL during GRPO": reward_and_kl,
    "Entropy and sampler mismatch during GRPO": entropy_and_mismatch,
}
