"""``--json``: the facts of the tables, typed, for scripts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayexp import cli
from rayexp.evaluation.metrics import cluster_bootstrap
from rayexp.formatting import one_line
from rayexp.reports.compare import Study, compare
from rayexp.stages import GRPO, SFT, Evaluate, settings
from rayexp.store.artifacts import Store
from rayexp.store.index import StoreIndex
from tests.fixtures.simulated_study import PROMPTS_PER_CELL, RECORD, published
from tests.fixtures.stored_study import STAGES, other_study, study

TUNED = next(stage for stage in STAGES if isinstance(stage, GRPO))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store of a finished study, which tests only read."""
    return study(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def looked(capsys):
    """Return a function that runs a command with --json and without. It returns the exit code of both, the document and
    the text."""

    def run(*arguments: object) -> tuple[int, Any, str]:
        words = [str(argument) for argument in arguments]
        code = cli.main(words)
        text = capsys.readouterr().out
        assert cli.main([*words, "--json"]) == code
        return code, json.loads(capsys.readouterr().out, parse_constant=pytest.fail), text

    return run


def test_ls_has_bytes_and_seconds(whole, looked):
    _, facts, text = looked("ls", "--store", whole.url, "--study", "demo-tiny", "--sort", "size")
    finished = StoreIndex(whole).finished()
    assert facts["stages_of_study"] == len(STAGES) == len(facts["finished"])
    for stage in facts["finished"]:
        known = finished[stage["id"]]
        assert stage == {
            "id": known.id,
            "kind": known.kind,
            "label": known.label,
            "started": "2026-01-02T03:04:05+00:00",
            "duration_s": 90.0,
            "bytes": sum(file.stat().st_size for file in Path(whole.url, "stages", known.id).rglob("*.*"))
            - Path(whole.url, "stages", known.id, "manifest.json").stat().st_size,
        }
    assert facts["bytes"] == sum(stage["bytes"] for stage in facts["finished"])
    assert [line.split()[0] for line in text.splitlines()[1:-2]] == [stage["id"] for stage in facts["finished"]]


def test_ls_has_what_is_unfinished(tmp_path, looked):
    store = study(tmp_path, finished=2)
    failure = {"error": "step 3: out of luck", "time": 1_767_323_045.25}
    store.files.write(f"work/{TUNED.id}/failure.json", json.dumps(failure).encode())
    (tmp_path / "checkpoint").mkdir()
    store.save_checkpoint(TUNED.id, 7, tmp_path / "checkpoint")
    _, facts, text = looked("ls", "--store", store.url, "--kind", "grpo")
    assert facts["finished"] == []
    (stage,) = facts["unfinished"]
    assert stage == {
        "id": TUNED.id,
        "kind": "grpo",
        "state": "failed",
        "step": 7,
        "time": 1_767_323_045.25,
        "label": TUNED.label,
        "why": "step 3: out of luck",
    }
    assert TUNED.id in text


def test_show_has_settings_metrics_and_results_unrounded(whole, looked):
    _, facts, text = looked("show", TUNED.label, "--store", whole.url)
    assert (facts["id"], facts["id_today"], facts["kind"]) == (TUNED.id, TUNED.id, "grpo")
    assert [each["id"] for each in facts["lineage"]] == [stage.id for stage in TUNED.lineage]
    assert all(each["in_store"] for each in facts["lineage"])
    assert facts["lineage"][-1]["settings"] == {k: v for k, v in settings.own(TUNED).items() if k != "kind"}
    assert (facts["provenance"], facts["duration_s"], facts["other_code"]) == (RECORD, 90.0, None)
    for file in facts["files"]:
        assert file["bytes"] == Path(facts["folder"], file["name"]).stat().st_size
        assert file["contents"] == "not read"
        assert file["sha256"] in text
    assert facts["problems"] is facts["model"] is None
    assert facts["metrics"]["last"]["rollout/reward"] == {"step": 2, "value": 0.5}
    measurement = next(stage for stage in STAGES if isinstance(stage, Evaluate) and stage.init == TUNED)
    assert facts["results"]["stage"] == measurement.id == facts["built_on_it"][0]["id"]
    rows = whole.table(measurement.id, "results.parquet").to_pandas()
    for cell in facts["results"]["cells"]:
        some = rows[(rows["role"] == cell["role"]) & (rows["cell"] == cell["cell"])]
        expected = cluster_bootstrap([np.exp(some["log_mass"].to_numpy())])
        assert cell["prompts"] == len(some) == PROMPTS_PER_CELL
        assert cell["q"] == {"mean": expected.mean, "low": expected.low, "high": expected.high}
        assert cell["greedy_accuracy"]["mean"] == some["greedy_correct"].mean()
        assert str(expected) in text


def test_show_has_damage_and_its_exit_code(tmp_path, looked):
    store = published(tmp_path, STAGES[:1], RECORD)
    code, facts, _ = looked("show", STAGES[0].id, "--store", store.url, "--verify")
    assert (code, facts["problems"]) == (0, [])
    assert {file["contents"] for file in facts["files"]} == {"verified"}
    store.files.write(f"stages/{STAGES[0].id}/metrics.parquet", b"PAR1")
    code, facts, text = looked("show", STAGES[0].id, "--store", store.url, "--verify")
    assert code == 1
    assert [file["name"] for file in facts["files"] if file["contents"] == "damaged"] == ["metrics.parquet"]
    assert len(facts["problems"]) == 1
    assert facts["metrics"]["last"] == {}
    assert one_line(facts["metrics"]["problem"]) in text


def test_what_is_no_number_is_null(tmp_path, looked):
    """Expect null for NaN, because JSON has no NaN and a strict reader refuses it."""
    store = published(tmp_path, STAGES[:1], {**RECORD, "seconds": {"sync": float("inf")}})
    _, facts, text = looked("show", STAGES[0].id, "--store", store.url)
    assert facts["provenance"]["seconds"] == {"sync": None}
    assert "sync inf" in text


def test_a_record_that_is_nested_deeply_is_printed(tmp_path, looked):
    store = published(tmp_path, STAGES[:1], RECORD)
    Path(store.url, "stages", STAGES[0].id, "provenance.json").write_text('{"git":' + "[" * 400 + "]" * 400 + "}")
    assert looked("show", STAGES[0].id, "--store", store.url)[1]["provenance"]["git"]


def test_explain_says_why_a_stage_would_not_run(whole, looked):
    _, facts, text = looked("explain", TUNED.id, "--store", whole.url)
    assert (facts["finished"], facts["would_run"], facts["nearest"]) == (True, False, None)
    assert (facts["started"], facts["duration_s"]) == (RECORD["started"], 90.0)
    assert facts["parent"] == {"id": TUNED.init.id, "label": TUNED.init.label, "finished": True}
    assert facts["not_in_store"] == facts["other_code"] == {}
    assert "would not run" in text


def test_explain_has_both_values_of_what_differs(tmp_path, looked):
    wanted = next(stage for stage in STAGES if isinstance(stage, SFT))
    near, equal = (wanted.model_copy(update={"samples": samples}) for samples in (77, 78))
    far = near.model_copy(update={"init": near.init.model_copy(update={"seed": 5})})
    store = published(tmp_path, [near, equal, far], RECORD)
    store.files.write(f"work/{wanted.root.id}/failure.json", b'{"error": "out of luck", "time": 5}')
    grid = ("--study", "demo", "--ood-ratios", "0", "--kl-betas", "0.1", "--seeds", "0")
    _, facts, text = looked("explain", wanted.label, *grid, "--store", store.url)
    first, second = sorted((near, equal), key=lambda stage: stage.id)
    assert (facts["finished"], facts["would_run"]) == (False, True)
    assert facts["failures"] == [{"id": wanted.root.id, "time": 5.0, "why": "out of luck"}]
    assert facts["parent"] == {"id": wanted.init.id, "label": wanted.init.label, "finished": False}
    assert (facts["nearest"]["id"], facts["nearest"]["equally_near"]) == (first.id, [second.id])
    differing = {each["setting"]: (each["of"], each["here"], each["there"]) for each in facts["nearest"]["differing"]}
    assert differing["samples"] == ("sft", 2000, first.samples)
    assert f"The nearest finished sft stage is {first.id}" in text


def test_compare_has_numbers_and_values(whole, tmp_path, looked):
    other = other_study(tmp_path, kl_beta=1.0)
    _, facts, text = looked("compare", "demo-tiny", f"{other.url}::demo-tiny", "--store", whole.url)
    assert facts["by"] is None
    (found,) = facts["comparisons"]
    (setting,) = found["differing"]
    assert (setting["of"], setting["setting"], setting["a"], setting["b"]) == ("grpo", "kl_beta", [0.1], [1.0])
    table = compare(Study.read("demo-tiny", whole.url), Study.read("demo-tiny", other.url)).table
    assert found["table"] == table.to_dict("records")
    assert {row["ood_ratio_a"] for row in found["table"]} == {0.0, 0.01}
    for row in found["table"]:
        assert f"{row['difference']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]" in text
    assert all(note in text for note in found["notes"])


@pytest.mark.parametrize(
    "arguments",
    [["show", "x"], ["ls", "--study", "x"], ["explain", "x"], ["compare", "x", "y"], ["gc", "--study", "x"]],
)
def test_a_refusal_is_no_json(whole, capsys, arguments):
    assert cli.main([*arguments, "--json", "--store", whole.url]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("refused: ")
