"""The coverage profile: the number of tries that a prompt takes, and the prompts that GRPO moved out of reach."""

import numpy as np
import pandas as pd
import pytest

from rayexp.reports.figures.coverage import coverage
from tests.fixtures.simulated_study import SMALL, simulated_results


def test_prompts_out_of_reach_are_counted_before_and_after():
    """Let GRPO remove all mass from half of the prompts, and give the others a mass of 1."""
    results = simulated_results(**SMALL)
    target = (results["kind"] == "grpo") & (results["ood_ratio"] == 0.01) & (results["role"] == "ood")
    rows = results[target].copy()
    rows["init_q"] = 0.005
    rows["q"] = [1e-6, 1.0] * (len(rows) // 2)
    drawing = coverage(pd.concat([results[~target], rows]))
    assert drawing
    at = drawing.data[(drawing.data["ood_ratio"] == 0.01) & (drawing.data["tries"] == 1000)]
    was, is_now = at[at["stage"] == "init"].iloc[0], at[at["stage"] == "grpo"].iloc[0]
    assert (was["uncovered"], is_now["uncovered"]) == (0.0, 0.5)
    assert tuple(is_now[["lost", "kept", "gained"]]) == (0.5, 0.5, 0.0)
    few = drawing.data[(drawing.data["ood_ratio"] == 0.01) & (drawing.data["tries"] == 100)].dropna(subset="kl_beta")
    assert few["gained"].iloc[0] == pytest.approx(0.5)
    assert "at most 50 % of the prompts of a panel out of reach" in drawing.caption


def test_what_sft_moved_out_of_reach_is_counted_as_well():
    results = simulated_results(**SMALL)
    target = (results["kind"] == "sft") & (results["ood_ratio"] == 0.01) & (results["role"] == "ood")
    drawing = coverage(results.assign(init_q=results["init_q"].mask(target, 0.9), q=results["q"].mask(target, 1e-6)))
    assert drawing
    at = drawing.data[(drawing.data["ood_ratio"] == 0.01) & (drawing.data["tries"] == 1000)].set_index("stage")
    assert at["uncovered"][["pretrain", "init"]].tolist() == [0.0, 1.0]
    of_sft, of_pretraining = (
        at.filter([stage], axis="index")[["lost", "kept", "gained"]] for stage in ("init", "pretrain")
    )
    assert of_sft.to_numpy().tolist() == [[1.0, 0.0, 0.0]]
    assert np.isnan(of_pretraining.to_numpy()).all()
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["after pretraining", "before GRPO"]


def test_where_several_completions_are_right_there_is_no_profile():
    assert coverage(simulated_results(**SMALL).assign(exact=False)) is None
