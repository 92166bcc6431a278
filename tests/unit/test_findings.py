"""docs/findings.md agrees with its tables, and its studies are those of its commands."""

from pathlib import Path

import pandas as pd
import pytest

import rayexp
from findings import collect, page
from findings.__main__ import run
from findings.runs import RUNS, Run
from rayexp.cli.run import parse_args
from rayexp.reports import page as report
from rayexp.stages.extend import published_at
from rayexp.store.artifacts import StoreError
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study as InStore
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain
from tests.fixtures.simulated_study import published, study_stages


def test_the_page_is_that_of_the_tables() -> None:
    """Run ``python -m findings write`` if this fails."""
    assert page.PAGE.read_text(encoding="utf-8") == page.written()


@pytest.mark.parametrize("one", RUNS, ids=[one.name for one in RUNS])
def test_a_study_has_in_its_store_the_name_of_its_tables(one: Run) -> None:
    experiment = parse_args(["--study", *one.arguments]).experiment
    assert experiment.folder == one.name


def test_a_study_is_collected_and_an_older_row_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = study_stages(ood_ratios=(0.0, 0.05), kl_betas=(0.1,), seeds=(0, 1))
    store = published(tmp_path, stages)
    plan = Plan.of("composition", stages, store.finished_ids())
    folder = tmp_path / "tables"
    folder.mkdir()
    monkeypatch.setattr(collect, "FOLDER", folder)
    monkeypatch.setattr(collect, "RUNS", folder / "runs.csv")
    (folder / "runs.csv").write_text("study,stages\na,1\nmine,2\n")
    study = InStore(store, "mine", "composition", "tiny")
    study.add(plan)
    study.write(plan, report.write)
    collect.collect(Run("mine", "composition"), store.url)
    masses = pd.read_csv(folder / "mine.csv")
    figure = pd.read_csv(Path(store.url) / "studies/mine/report/figure-1.csv")
    pd.testing.assert_frame_equal(masses, figure, rtol=1e-5)
    assert pd.read_csv(folder / "mine-claims.csv")["verdict"].notna().all()
    rows = pd.read_csv(folder / "runs.csv").set_index("study")
    assert rows["stages"].to_dict() == {"a": 1, "mine": len(stages)}


def test_a_study_of_fixed_points_is_collected_with_what_they_predict(tmp_path, monkeypatch) -> None:
    stages = study_stages(ood_ratios=(0.05,), kl_betas=(0.1, 1.0), seeds=(0,))
    store = published(tmp_path, stages)
    plan = Plan.of("fixed-point", stages, store.finished_ids())
    monkeypatch.setattr(collect, "FOLDER", tmp_path)
    monkeypatch.setattr(collect, "RUNS", tmp_path / "runs.csv")
    study = InStore(store, "mine", "fixed-point", "tiny")
    study.add(plan)
    study.write(plan, report.write)
    collect.collect(Run("mine", "fixed-point"), store.url)
    predicted = pd.read_csv(tmp_path / "mine-predictions.csv").set_index("kl_beta")
    results = rayexp.results("mine", store.url)
    for beta, rows in results[(results["kl_beta"].notna()) & (results["role"] == "ood")].groupby("kl_beta"):
        assert predicted["q"][beta] == pytest.approx(rows["q"].mean(), rel=1e-5)
        assert predicted["fixed_point"][beta] == pytest.approx(rows["fixed_point"].mean(), rel=1e-5)
        way = (rows["q"] - rows["init_q"]).mean() / (rows["fixed_point"] - rows["init_q"]).mean()
        assert [predicted[name][beta] for name in ("way", "way_lowest", "way_highest")] == pytest.approx(
            [way] * 3, rel=1e-4
        )
    assert not (tmp_path / "mine-bands.csv").exists()


def test_a_study_without_grpo_is_not_collected(tmp_path, monkeypatch) -> None:
    stages = [
        stage for stage in study_stages(ood_ratios=(0.05,), kl_betas=(0.1,), seeds=(0,)) if "grpo" not in stage.label
    ]
    store = published(tmp_path, stages)
    plan = Plan.of("composition", stages, store.finished_ids())
    monkeypatch.setattr(collect, "FOLDER", tmp_path)
    study = InStore(store, "mine", "composition", "tiny")
    study.add(plan)
    study.write(plan, report.write)
    with pytest.raises(StoreError, match="studies/mine has no GRPO stage that is measured"):
        collect.collect(Run("mine", "composition"), store.url)
    assert not list(tmp_path.glob("mine*.csv"))


def test_the_loss_of_a_continued_pretraining_is_that_of_its_end() -> None:
    chain = tiny_chain(StringTask(axis="composition"))
    _, _, last = published_at(chain.pretrain, (1, 2))
    assert collect.last_of_pretraining(chain.sft) == chain.pretrain
    assert collect.last_of_pretraining(chain.sft.model_copy(update={"init": last})) == last


def test_an_unknown_study_is_refused_before_any_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="there is no finding named no-such, nothing; choose from composition-tiny, "):
        run(("no-such", "depth-tiny", "nothing"))
