"""Copied items and their controls: identified, paired, and left out of all results on other items."""

import numpy as np
import pandas as pd
import pytest

from rayexp.reports.copies import held_out, pairs, with_copied
from rayexp.reports.figures.copies import copies_by_stage
from rayexp.store.artifacts import Store
from rayexp.studies.contamination import TIMES
from rayexp.tasks.copies import is_copied
from tests.fixtures import local_sweep
from tests.fixtures.factories import pretrain, sft


def rows(worth: float, items: int = 10) -> pd.DataFrame:
    """Return results in which the items of each cell have q 0.1, and copied ones ``worth`` more."""
    frame = pd.DataFrame(
        [
            {"stage_id": "one", "cell": cell, "prompt_index": i, "role": role}
            for role, cell in (("id", "T"), ("ood", "TS"), ("ood", "ST"))
            for i in range(items)
        ]
    )
    found = with_copied(frame, sft(pretrain(copied_items=8, ood_ratio=0.1)))
    return found.assign(q=0.1 + worth * found["copied"].fillna(False).astype(float))


def test_halves_are_those_that_pretraining_had():
    found = rows(0.5)
    for cell, of_cell in found.groupby("cell"):
        known = of_cell[of_cell["copied"].notna()]
        assert len(known) == (0 if cell == "T" else 8)
        assert known["copied"].tolist() == is_copied(0, str(cell), np.arange(len(known))).tolist()
    without = with_copied(found.drop(columns="copied"), sft(pretrain()))
    assert without["copied"].isna().all()


def test_a_pair_has_the_worth_of_a_copy_and_what_was_not_copied_is_left():
    found = rows(0.5)
    paired = pairs(found)
    assert len(paired) == 8
    assert paired["worth"].tolist() == pytest.approx([0.5] * 8)
    assert (held_out(found)["q"] == 0.1).all()
    assert len(held_out(found)) == len(found) - 8


def test_an_item_whose_control_was_not_measured_is_in_no_pair():
    found = rows(0.5, items=5)
    assert len(pairs(found)) == 4


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    store = tmp_path_factory.mktemp("copies")
    arguments = ["--study", "contamination", "--scale", "toy", "--seeds", "0", "1", "--store", str(store)]
    assert local_sweep.main(arguments) == 0
    return Store(str(store)), store / "studies/contamination-toy"


def test_a_study_tells_the_halves_apart(study):
    _, folder = study
    results = pd.read_parquet(folder / "results.parquet")
    halves = pd.read_csv(folder / "copies.csv")
    summary = pd.read_csv(folder / "summary.csv")
    assert set(results["copied"].dropna()) == {True, False}
    assert (halves.groupby(["stage_id", "cell"])["n_prompts"].agg(list).map(lambda n: n == [2, 2])).all()
    one = halves[halves["copied"]].iloc[0]
    about = results[(results["stage_id"] == one["stage_id"]) & (results["cell"] == one["cell"])]
    assert one["mean_q"] == pytest.approx(about[about["copied"].eq(True)]["q"].mean())
    of_summary = summary[(summary["stage_id"] == one["stage_id"]) & (summary["cell"] == one["cell"])].iloc[0]
    assert of_summary["mean_q"] == pytest.approx(about[~about["copied"].eq(True)]["q"].mean())
    assert not (folder / "templates.csv").exists()


def test_its_figure_shows_every_stage_at_every_number_of_copies(study):
    _, folder = study
    results = pd.read_parquet(folder / "results.parquet")
    drawing = copies_by_stage(pairs(results))
    assert drawing
    assert set(drawing.data["stage"]) == {"pretraining", "SFT", "GRPO, β = 0.1"}
    assert drawing.data.groupby(["condition", "stage"])["ood_ratio"].nunique().eq(len(TIMES)).all()
    assert set(drawing.data["condition"]) == {"exposure = early", "exposure = late"}
    assert copies_by_stage(pairs(results[results["copied"].isna()])) is None
