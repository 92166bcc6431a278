"""The figures of a report, each with the exact table that it draws. One row of panels for each arm of the study."""

import pandas as pd

from rayexp.report.drawing import Drawing
from rayexp.report.figures.curves import entropy_and_mismatch, reward_and_kl
from rayexp.report.figures.mass import mass_by_ratio, mass_by_stage
from rayexp.report.figures.pass_at_k import pass_at_k_curves
from rayexp.report.figures.tilt import after_against_before, gain_by_mass, logit_shift


def drawings(results: pd.DataFrame, curves: pd.DataFrame) -> list[Drawing]:
    """Every figure that there is data for, from ``table.results`` and ``table.curves``."""
    measured = (mass_by_ratio, mass_by_stage, after_against_before, logit_shift, gain_by_mass, pass_at_k_curves)
    logged = (reward_and_kl, entropy_and_mismatch)
    found = [draw(results) for draw in measured] + [draw(curves) for draw in logged]
    return [drawing for drawing in found if drawing]
