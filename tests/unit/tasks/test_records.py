"""A user's own questions: read by column, refused by line, judged by a verifier, and pinned by the file's content."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayexp.stages import parse_stage, parse_stored
from rayexp.tasks.contract import ContractError, require_contract
from rayexp.tasks.text import RecordTask, records, verifiers
from rayexp.tasks.text.base import held_out
from rayexp.tasks.text.verifiers import VERIFIERS
from tests.fixtures.factories import grpo, pretrain, sft

RECORDS = [
    {"q": f"{a} + {b}", "a": a + b, "kind": "id" if a + b < 10 else "ood", "carry": f"carry {int(a + b > 9)}"}
    for a in range(10)
    for b in range(10)
]


def written(folder, records=RECORDS, name="sums.jsonl"):
    path = folder / name
    table = pd.DataFrame(records)
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        case ".csv":
            table.to_csv(path, index=False)
        case ".parquet":
            table.to_parquet(path)
    return str(path)


def task(path, **settings):
    columns = {"name": "sums", "prompt": "q", "answer": "a", "role": "kind"}
    return RecordTask.model_validate({"path": path, **columns, **settings})


@pytest.mark.parametrize("name", ["sums.jsonl", "sums.csv", "sums.parquet"])
def test_a_table_of_any_kind_becomes_the_same_task(name, tmp_path):
    sums = task(written(tmp_path, name=name), cell="carry")
    require_contract(sums)
    assert (sums.cells("id"), sums.cells("ood"), sums.cells("probe")) == (("carry 0",), ("carry 1",), ())
    decode = sums.vocabulary.decode
    for cell, low, high in (("carry 0", 0, 9), ("carry 1", 10, 18)):
        batch = sums.of_cell("grpo", 0, cell, 0, 50)
        for prompt, gold in zip(batch.prompts, batch.completions, strict=True):
            asked, answer = decode(prompt)[len("<bos>") : -1], int(decode(gold).removesuffix("<eos>"))
            assert sum(map(int, asked.split(" + "))) == answer
            assert low <= answer <= high
            assert not held_out(asked)
    assert sums.prompt_tokens("carry 0") == len("0 + 0") + 2


def test_without_a_column_for_roles_all_are_id(tmp_path):
    assert task(written(tmp_path), role=None).cells("id") == ("id",)


def test_a_stage_is_pinned_to_what_the_file_holds(tmp_path):
    sums = task(written(tmp_path))
    stage = pretrain(task=sums)
    assert parse_stage(stage.model_dump_json()).id == stage.id
    changed = [*RECORDS, {"q": "10 + 1", "a": 11, "kind": "ood", "carry": "carry 0"}]
    more = task(written(tmp_path, changed, "more.jsonl"))
    assert pretrain(task=more).id != stage.id
    with pytest.raises(
        ContractError, match=r"the content of path=.* has changed .*; restore the file, or leave digest out"
    ):
        require_contract(task(more.path, digest=sums.digest))


def test_a_relative_path_leads_from_a_folder_that_modules_are_imported_from(tmp_path, monkeypatch):
    """Run in another folder with the same sys.path, like Ray's workers."""
    written(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"path='sums.jsonl' cannot be read"):
        task("sums.jsonl")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    require_contract(task("sums.jsonl"))


def test_a_stored_stage_is_read_where_its_file_is_gone(tmp_path):
    path = Path(written(tmp_path))
    tuned = sft(pretrain(task=task(str(path))))
    texts = [stage.model_dump_json() for stage in (tuned, grpo(tuned, prompt_role="ood", hint_tokens=1))]
    path.unlink()
    records._content.cache_clear()
    assert [parse_stored(text).label.rpartition("/")[2] for text in texts] == ["sft", "grpo-ood-hint1-b0.1"]
    with pytest.raises(ValueError, match="cannot be read"):
        parse_stage(texts[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": ""}, "a is empty in line 3 of .*; fill in a text or a number"),
        ({"q": None}, "q is empty in line 3"),
        ({"kind": "train"}, "in line 3 .* kind='train' is not one of id, ood, probe"),
        ({"q": "9 + 9"}, "line 100 of .* repeats the question of line 3 .*, in the cell id; leave one out"),
    ],
)
def test_a_record_that_can_not_be_used_is_refused_with_its_line(change, said, tmp_path):
    records = [record | change if i == 2 else record for i, record in enumerate(RECORDS)]
    with pytest.raises(ContractError, match=said):
        require_contract(task(written(tmp_path, records)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": "question"}, "prompt='question' is not a column of .*; its columns are q, a, kind, carry"),
        ({"verifier": "no_such_module:right"}, "verifier='no_such_module:right' cannot be imported"),
    ],
)
def test_columns_and_functions_that_are_not_there_are_refused(settings, said, tmp_path):
    with pytest.raises(ContractError, match=said):
        require_contract(task(written(tmp_path), **settings))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.jsonl", "path='.*nowhere.jsonl' cannot be read"),
        ("sums.txt", "path='sums.txt' should end with .jsonl, .parquet, .csv"),
    ],
)
def test_a_file_that_is_not_there_is_refused_when_the_task_is_made(path, said):
    with pytest.raises(ValueError, match=said):
        task(path)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_text('{"q": "1 + 1", "a')
    with pytest.raises(ContractError, match=r"path=.* cannot be read as \.jsonl"):
        require_contract(task(str(path)))


def test_a_verifier_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="verifier='maths' is not one of exact"):
        task(written(tmp_path), verifier="maths")


def raising(gold, answer):
    raise RuntimeError("no idea")


def test_a_verifier_that_fails_is_named_with_the_answer(tmp_path):
    path = f"{__name__}:raising"
    with pytest.raises(
        ContractError, match=rf"the verifier {path} fails on the answer '\d+' where '\d+' is right: .*no idea"
    ):
        require_contract(task(written(tmp_path), verifier=path))


# Verdicts


@given(st.floats(0, 1e3).map(lambda x: round(x, 3)))
def test_numbers_are_right_however_they_are_written(value):
    assert VERIFIERS["math"](str(value), f"{value:.4f}")
    assert not VERIFIERS["math"](str(value), str(value + 1))


@pytest.mark.parametrize("endless", ["9**9**9**9", "$10^{10^{8}}$", "$(10^{9})!$"])
def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_one_is_judged(endless, monkeypatch):
    monkeypatch.setattr(verifiers, "LIMIT_S", 1.0)
    monkeypatch.setattr(verifiers, "_COMPARER", verifiers._Comparer())
    assert not VERIFIERS["math"]("3", endless)
    assert VERIFIERS["math"]("3", "3.0")


@pytest.mark.parametrize(
    ("written", "right"),
    [("2 + 3 = 5\n#### 1,005", True), ("#### 1005", True), ("1005", False), ("#### 1006", False), ("####", False)],
)
def test_what_counts_of_a_worked_solution_is_its_end(written, right):
    assert VERIFIERS["final"]("1000 + 5 = 1005\n#### 1005", written) == right


def same_digits(gold, answer):
    return sorted(gold) == sorted(answer)


@pytest.mark.parametrize("verifier", ["math", f"{__name__}:same_digits"])
def test_an_answer_that_is_written_otherwise_is_right_but_not_the_gold_one(verifier, tmp_path):
    sums = task(written(tmp_path, [{"q": "one and two and twenty", "a": "23", "kind": "id"}]), verifier=verifier)
    assert not sums.unique
    _, solution = sums.example("grpo" if not held_out("one and two and twenty") else "test", 0, "id")
    vocabulary = sums.vocabulary
    other = vocabulary.plain("32" if "same" in verifier else "23.0")
    verdict = sums.judge(solution, [*other, vocabulary.eos])
    assert (verdict.answer, verdict.trace) == (True, False)
    for wrong in (other, [], [vocabulary.eos], [*vocabulary.plain("24"), vocabulary.eos]):
        assert not sums.judge(solution, wrong).answer
    whole = sums.judge(solution, solution.completion)
    assert (whole.answer, whole.trace) == (True, True)


def test_results_are_told_by_the_templates_that_records_name(tmp_path):
    sums = task(written(tmp_path), template="carry")
    numbers = np.arange(5)
    batch = sums.of_cell("test", 0, "id", 0, 5)
    told = sums.templates_of("id", numbers)
    asked = {record["q"]: str(record["carry"]) for record in RECORDS}
    decode = sums.vocabulary.decode
    assert told == [asked[decode(prompt)[len("<bos>") : -1]] for prompt in batch.prompts]
    assert task(written(tmp_path)).templates_of("id", numbers) == []


# Data sets by name


def test_a_data_set_is_read_by_its_name_and_split(tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    written(folder, name="train.jsonl")
    named, file = task(f"datasets:{folder}:train"), task(str(folder / "train.jsonl"))
    require_contract(named)
    one, other = (each.of_cell("grpo", 0, "ood", 0, 20) for each in (named, file))
    assert (one.tokens_NT == other.tokens_NT).all()
    assert named.digest == task(f"datasets:{folder}:train").digest
    written(folder, RECORDS[:50], name="train.jsonl")
    records._content.cache_clear()
    assert named.digest != task(f"datasets:{folder}:train").digest


@pytest.mark.parametrize("name", ["sums", "sums:", "a:b:c:d"])
def test_a_data_set_without_a_split_is_refused(name):
    with pytest.raises(ValueError, match="should be datasets:NAME:SPLIT or datasets:NAME:SUBSET:SPLIT"):
        task(f"datasets:{name}")


def test_a_data_set_that_can_not_be_had_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"path='datasets:.*nowhere:train' cannot be read"):
        task(f"datasets:{tmp_path}/nowhere:train")
    monkeypatch.setattr(records, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'datasets is not installed; run: pip install "rayexp\[datasets\]"'):
        task(f"datasets:{tmp_path}/nowhere:test")
