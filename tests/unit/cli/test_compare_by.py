"""``rayexp compare STUDY --by SETTING``: the values of one setting within a study."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from rayexp import cli
from rayexp.evaluation.metrics import cluster_bootstrap
from rayexp.reports.compare import Study, compare
from rayexp.store.artifacts import Store
from tests.fixtures.simulated_study import PROMPTS_PER_CELL, study_stages
from tests.fixtures.stored_study import other_study, study

BETAS = (1.0, 10.0, 0.1)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store of a study with three betas, two ratios and two seeds, which tests only read."""
    return study(tmp_path_factory.mktemp("varied"), study_stages(seeds=(0, 1), kl_betas=BETAS, ood_ratios=(0.0, 0.01)))


@pytest.fixture
def refusal(capsys):
    """Return a function that runs a refused command, and returns the refusal."""

    def run(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        return said.err

    return run


def rows_of(store: Store) -> pd.DataFrame:
    return pd.read_parquet(f"{store.url}/studies/demo-tiny/results.parquet")


@pytest.mark.parametrize("by", ["grpo.kl_beta", "kl_beta"])
def test_every_value_is_compared_with_the_first(varied, by):
    first, *others = Study.read("demo-tiny", varied.url).parts(by)
    title = f"demo-tiny in {varied.url}, grpo.kl_beta ="
    assert [part.title for part in (first, *others)] == [f"{title} {value}" for value in ("0.1", "1", "10")]
    rows = rows_of(varied)
    key = ["seed", "ood_ratio", "role", "cell", "prompt_index"]
    for other in others:
        found = compare(first, other)
        assert found.differing == [("grpo", "kl_beta", [0.1], [other.value], "left out of it")]
        assert found.unpaired == found.notes == []
        assert len(found.table) == 2 * 3  # ratios, roles; pretraining and SFT have no beta
        pairs = rows[rows.kl_beta == 0.1].merge(rows[rows.kl_beta == other.value], on=key)
        for row in found.table.to_dict("records"):
            some = pairs[(pairs.ood_ratio == row["ood_ratio_a"]) & (pairs.role == row["role"])]
            gains = [(seed.q_y - seed.q_x).to_numpy() for _, seed in some.groupby("seed")]
            expected = cluster_bootstrap(gains).within((-some.q_x.mean(), 1 - some.q_x.mean()))
            assert row["pairs"] == len(some) >= 2 * PROMPTS_PER_CELL
            assert (row["mean_q_a"], row["mean_q_b"]) == pytest.approx((some.q_x.mean(), some.q_y.mean()))
            assert (row["difference"], row["low"], row["high"]) == pytest.approx(
                (expected.mean, expected.low, expected.high)
            )


def test_a_setting_of_an_earlier_stage_compares_all_that_is_built_on_it(varied):
    rows = rows_of(varied)
    table = compare(*Study.read("demo-tiny", varied.url).parts("ood_ratio")).table
    assert set(table["ood_ratio"]) == {"0|0.01"}
    assert len(table) == 5 * 3  # pretrain, SFT and three betas of GRPO; roles
    for row in table[table["stage"] == "pretrain/sft"].to_dict("records"):
        some = rows[(rows.kind == "sft") & (rows.role == row["role"])].groupby("ood_ratio")["q"].mean()
        assert row["difference"] == pytest.approx(some[0.01] - some[0.0])


def test_a_part_counts_stages_that_cannot_be_read(tmp_path):
    store = study(tmp_path, study_stages(seeds=(0, 1), kl_betas=(0.1, 1.0), ood_ratios=(0.0,)))
    unread = rows_of(store)["stage_id"].iloc[0]
    store.files.remove_file(f"stages/{unread}/spec.json")
    found = compare(*Study.read("demo-tiny", store.url).parts("kl_beta"))
    assert found.unpaired == [f"1 measured stages of {part}, whose specs are not in its store" for part in "AB"]


def test_it_prints_a_table_for_each_value_and_writes_one_csv(varied, tmp_path, capsys):
    words = ["compare", "demo-tiny", "--by", "kl_beta", "--store", varied.url, "--csv", str(tmp_path / "table.csv")]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert text.count("grpo.kl_beta = 0.1\n") == 2
    with Path(tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["value_a"], row["value_b"]) for row in rows] == [("0.1", "1.0")] * 6 + [("0.1", "10.0")] * 6
    for row in rows:
        assert f"{float(row['difference']):+.3g} [" in text
    assert cli.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["by"] == "grpo.kl_beta"
    assert [(each["value_a"], each["value_b"]) for each in facts["comparisons"]] == [(0.1, 1.0), (0.1, 10.0)]
    told = [row["difference"] for each in facts["comparisons"] for row in each["table"]]
    assert told == pytest.approx([float(row["difference"]) for row in rows])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "neither B nor --by is given; give A B"),
        (["demo-tiny", "--by", "kl_beta"], "B and --by are both given; give A B"),
        (["--by", "kl_bta"], "; did you mean 'grpo.kl_beta'?"),
        (["--by", "group_size"], "by='group_size' has one value in demo-tiny in "),
        (["--by", "seed"], "is the end of several names; choose from pretrain.seed, sft.seed, grpo.seed"),
    ],
)
def test_refused_in_one_sentence(varied, refusal, words, why):
    said = refusal("compare", "demo-tiny", *words, "--store", varied.url)
    assert why in said
    if "group_size" in words:
        assert "pretrain.ood_ratio" in said.partition("; choose from ")[2]


def test_a_study_without_anything_that_varies_says_so(tmp_path, refusal):
    store = study(tmp_path, study_stages(seeds=(0,), kl_betas=(0.1,), ood_ratios=(0.0,)))
    assert "no setting varies in demo-tiny" in refusal("compare", "demo-tiny", "--by", "x", "--store", store.url)
    other = other_study(tmp_path / "other", kl_beta=1.0)
    assert "has one value" in refusal("compare", "demo-tiny", "--by", "kl_beta", "--store", other.url)
