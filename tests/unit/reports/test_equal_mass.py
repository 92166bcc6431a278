"""The comparison of conditions between decoders that start from the same mass, whatever their OOD ratio."""

import pandas as pd
import pytest

from rayexp.reports.figures.equal_mass import at_equal_mass, gain_at_equal_mass
from tests.fixtures.simulated_study import SMALL, simulated_results


def two_conditions() -> pd.DataFrame:
    """Return results in which deeper decoders need ten times the OOD samples for the same mass, and gain half as
    much."""
    shallow = simulated_results(**SMALL).assign(condition="layers = 4")
    ratios = sorted(shallow["ood_ratio"].unique())
    deep = shallow.assign(condition="layers = 16", ood_ratio=shallow["ood_ratio"].map(lambda ratio: 10 * ratio + 0.001))
    before = deep["kl_beta"].notna()
    halved = deep["init_q"] + (deep["q"] - deep["init_q"]) / 2
    assert len(ratios) > 2
    return pd.concat([shallow, deep.assign(q=deep["q"].mask(before, halved))], ignore_index=True)


def test_conditions_meet_in_bands_of_their_mass_and_not_at_their_ratios():
    rows = at_equal_mass(two_conditions())
    gains = rows.pivot_table(index=["kl_beta", "q_from"], columns="condition", values="gain")
    assert gains["layers = 16"].to_numpy() == pytest.approx(gains["layers = 4"].to_numpy() / 2)
    masses = rows.pivot_table(index=["kl_beta", "q_from"], columns="condition", values="q")
    assert masses["layers = 16"].to_numpy() == pytest.approx(masses["layers = 4"].to_numpy())
    assert ((rows["q_from"] <= rows["q"]) & (rows["q"] <= rows["q_to"])).all()


def test_each_decoder_is_in_one_band():
    results = simulated_results(**SMALL).assign(condition="layers = 4")
    decoders = len(results[["ood_ratio", "seed"]].drop_duplicates())
    assert at_equal_mass(results).groupby("kl_beta")["decoders"].sum().tolist() == [decoders]
    full = results.assign(init_q=results["init_q"].mask(results["role"] == "ood", 1.0))
    assert set(at_equal_mass(full)["q_to"]) == {1.0}


def test_a_study_of_one_condition_compares_none():
    assert gain_at_equal_mass(simulated_results(**SMALL)) is None
    drawing = gain_at_equal_mass(two_conditions())
    assert drawing
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["layers\u00a0=\u00a04", "layers\u00a0=\u00a016"]
