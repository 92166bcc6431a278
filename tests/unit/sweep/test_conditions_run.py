"""Studies of conditions, run and compared from end to end at toy scale in this process."""

import json

import pandas as pd
import pytest

from rayexp import cli
from rayexp.cli import report
from rayexp.reports.objections import NOT_TESTED
from rayexp.studies import CONTROL
from tests.fixtures import local_sweep


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "conditions"),
    [("dense", 3), ("exchange", 5), ("exposure", 5), pytest.param("objections", 20, marks=pytest.mark.soak)],
)
def test_a_study_of_conditions_runs_and_says_who_is_right(study, conditions, tmp_path, capsys):
    store = ["--store", str(tmp_path)]
    assert local_sweep.main(["--study", study, "--scale", "toy", "--ood-ratios", "0.5", *store]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "studies" / f"{study}-toy"
    decided = pd.read_csv(folder / "objections.csv")
    assert decided["condition"].nunique() == conditions - 1
    assert decided[["value", "low", "high"]].notna().all(axis=None)
    assert set(decided["verdict"]) == {NOT_TESTED}  # far too short to say who is right
    assert decided["setting"].isna().all()  # only the condition distinguishes its chains from the control's
    assert all(f"{name} | " in printed for name in decided["condition"])
    assert 'id="objections"' in (folder / "report/index.html").read_text()
    rows = pd.read_parquet(folder / "results.parquet", columns=["condition"])["condition"].str.partition(", ")[0]
    assert {CONTROL, *decided["condition"]} <= set(rows)

    written = (folder / "objections.csv").read_bytes()
    (folder / "objections.csv").unlink()
    assert local_sweep.main(["--study", study, "--scale", "toy", *store], command=report.main) == 0
    assert (folder / "objections.csv").read_bytes() == written, "the report has lost conditions"

    capsys.readouterr()
    assert cli.main(["compare", f"{study}-toy", "--by", "condition", "--json", *store]) == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    assert [each["value_a"] for each in compared] == [CONTROL] * (conditions - 1)
    assert all(each["table"] for each in compared)
