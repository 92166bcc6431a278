"""Pages of the service that compare: chains, curves, two stages, rows of results, two studies."""

import io
import json
import math
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rayexp import cli
from rayexp.service import chains, rows
from rayexp.service.app import application
from rayexp.service.curves import POINTS, ROUNDING, chart, thinned
from rayexp.stages import Evaluate
from rayexp.store.artifacts import Store, StoreError
from rayexp.studies.conditions import CONTROL, Condition
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures import stored_study
from tests.fixtures.stored_study import STAGES

HOSTS = ("testserver",)
HOSTILE = '"><script>alert(1)</script>'
GRPO = [stage for stage in STAGES if stage.kind == "grpo"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stored_study.study(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def client(store):
    return TestClient(application(store.url, HOSTS))


def page(client, path) -> str:
    response = client.get(path)
    assert response.status_code == 200, response.text
    assert "<script" not in response.text
    assert " style=" not in response.text, "the policy of a page lets no style of its own in"
    return response.text


# Chains


def facts_of(plan: Plan) -> list[dict]:
    found = chains.parents(plan.labels, lambda ids: {})
    about = {"state": "missing", "duration_s": None}
    return [
        {"id": stage.id, "kind": stage.kind, "label": plan.labels[stage.id], "parent": found[stage.id], **about}
        for stage in plan.stages
    ]


def true_parents(plan: Plan) -> dict[str, str | None]:
    return {stage.id: stage.parent.id if stage.parent else None for stage in plan.stages}


def test_labels_say_what_a_stage_is_built_on():
    plan = Plan.of("demo", STAGES, ())
    assert chains.parents(plan.labels, lambda ids: {}) == true_parents(plan)


def test_labels_with_conditions_do_too():
    other = [changed(stage, group_size=2) for stage in STAGES]
    plan = Plan.of("demo", [Condition(CONTROL, STAGES), Condition("small", other)], ())
    assert len(plan.stages) > len(STAGES)
    assert chains.parents(plan.labels, lambda ids: {}) == true_parents(plan)


def changed(stage, **update):
    subject = stage.init if isinstance(stage, Evaluate) else stage
    other = subject.model_copy(update=update) if subject.kind == "grpo" else subject
    return stage.model_copy(update={"init": other}) if isinstance(stage, Evaluate) else other


def test_a_spec_decides_where_labels_leave_several():
    plan = Plan.of("demo", STAGES, ())
    same = {stage.id: re.sub("-s[01]/", "-s0/", plan.labels[stage.id]) for stage in plan.stages}
    specs = {stage.id: stage for stage in plan.stages}
    assert chains.parents(same, lambda ids: {i: specs[i] for i in ids}) == true_parents(plan)


def test_a_row_of_the_table_is_a_chain_and_every_stage_is_in_it_once():
    plan = Plan.of("demo", STAGES, ())
    table = chains.table(facts_of(plan))
    assert [column["title"] for column in table["columns"]] == ["pretrain", "sft", "grpo"]
    cells = [cell for row in table["rows"] for cell in row if cell.stage]
    shown = [cell.stage["id"] for cell in cells] + [each["id"] for cell in cells for each in cell.measured]
    assert sorted(shown) == sorted(stage.id for stage in plan.stages)
    assert {len(row) for row in table["rows"]} == {3}
    assert {cell.name for cell in cells if cell.stage["kind"] == "grpo"} == {"grpo-ood-b0.1"}


@given(st.lists(st.integers(0, 30), max_size=30), st.lists(st.sampled_from(["sft", "grpo", "rft", "odd"]), min_size=30))
def test_a_table_of_any_chains_is_a_rectangle(numbers, kinds):
    """Include chains with two kinds in different orders."""
    stages = [
        {
            "id": str(i),
            "kind": kinds[i],
            "label": f"stage {i}",
            "parent": str(number % i) if i and number < 20 else None,
            "state": "missing",
            "duration_s": None,
        }
        for i, number in enumerate(numbers[: len(kinds)])
    ]
    table = chains.table(stages)
    covered = np.zeros((len(table["rows"]) + 1, len(table["columns"]) + 1), dtype=int)
    for y, row in enumerate(table["rows"]):
        for cell in row:
            x = int(np.argmin(covered[y]))
            covered[y : y + cell.rows, x : x + cell.columns] += 1
    assert (covered[:-1, :-1] == 1).all()
    assert not covered[-1].any()
    assert not covered[:, -1].any()
    assert sum(cell.stage is not None for row in table["rows"] for cell in row) == len(stages)


def test_a_study_shows_every_stage_with_its_state(tmp_path):
    found = stored_study.study(tmp_path, finished=len(STAGES) - 4)
    text = page(TestClient(application(found.url, HOSTS)), "/studies/demo-tiny")
    finished = found.finished_ids()
    assert all(f'href="/stages/{stage.id}"' in text for stage in STAGES if stage.id in finished)
    assert text.count('aria-label="missing"') == 4 + 1  # one of them in the legend


# A stage


def test_a_stage_is_compared_with_another_one_along_its_lineage(client):
    one, other = GRPO[0], GRPO[-1]
    found = client.get(f"/api/stages/{one.id}/differences?other={other.id}").json()
    differing = [(each["of"], each["setting"]) for each in found["settings"][: found["differing"]]]
    assert differing == [("pretrain", "seed"), ("pretrain", "ood_ratio"), ("sft", "seed"), ("grpo", "seed")]
    assert all(each["here"] == each["there"] for each in found["settings"][found["differing"] :])
    text = page(client, f"/stages/{one.id}?other={other.id}")
    assert f"4 of {len(found['settings'])} settings differ" in text
    assert f'<option value="{other.id}">' in text


def test_a_hostile_name_of_another_stage_stays_text(client):
    response = client.get(f"/stages/{GRPO[0].id}", params={"other": HOSTILE})
    assert response.status_code == 404
    assert "<script" not in response.text


def test_a_stage_has_examples_by_a_rule(client):
    results = client.get(f"/api/stages/{GRPO[0].id}").json()["results"]
    masses = [each["q"] for each in results["examples"] if each["cell"] == results["cells"][0]["cell"]]
    assert masses == sorted(masses)
    assert len(masses) == 3
    assert "percentile" in page(client, f"/stages/{GRPO[0].id}")


def test_provenance_is_shown_whole(client):
    provenance = client.get(f"/api/stages/{GRPO[0].id}").json()["provenance"]
    text = page(client, f"/stages/{GRPO[0].id}")
    assert all(f"<td>{name}</td>" in text for name in provenance)


def test_a_stage_draws_its_metrics(client):
    curves = client.get(f"/api/stages/{GRPO[0].id}/curves").json()["curves"]
    assert {curve["metric"] for curve in curves} >= {"grpo/kl", "rollout/reward"}
    assert page(client, f"/stages/{GRPO[0].id}").count("<polyline") == len(curves)
    measurement = next(stage for stage in STAGES if isinstance(stage, Evaluate))
    assert client.get(f"/api/stages/{measurement.id}/curves").json()["curves"] == []


def test_a_damaged_file_of_metrics_is_said_to_be_damaged(tmp_path):
    found = stored_study.study(tmp_path)
    found.files.write(f"stages/{GRPO[0].id}/metrics.parquet", b"torn")
    text = page(TestClient(application(found.url, HOSTS)), f"/stages/{GRPO[0].id}")
    assert "metrics.parquet is damaged" in text


@given(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=700))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values):
    points = list(enumerate(values))
    few = thinned(points)
    assert len(few) <= POINTS
    assert few == sorted(set(few))
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert min(value for _, value in few) == min(values)
    assert max(value for _, value in few) == max(values)
    drawn = chart(few)
    numbers = [float(number) for pair in drawn.line.split() for number in pair.split(",")]
    assert all(math.isfinite(number) and 0 <= number <= drawn.width for number in numbers)
    assert (drawn.low == drawn.high) == math.isclose(min(values), max(values), rel_tol=ROUNDING)


def test_rounding_is_no_slope():
    drawn = chart([(1, 1.0), (2, 1.0 + 1e-10), (3, 1.0 - 1e-10)])
    assert drawn.low == drawn.high == "1"
    assert len({point.split(",")[1] for point in drawn.line.split()}) == 1


# Rows of results


def test_rows_are_chosen_by_their_values(client):
    found = client.get("/api/studies/demo-tiny/rows?kind=grpo&role=ood&seed=1").json()
    assert {(row["role"], row["label"].rpartition("/")[2]) for row in found["rows"]} == {("ood", "grpo-ood-b0.1")}
    assert found["choices"]["ood_ratio"] == ["0", "0.01"]
    assert found["choices"]["kl_beta"] == ["0.1", "-"]
    assert 0 < found["chosen"] < found["all"]
    files = {
        form: client.get(f"/api/studies/demo-tiny/results?form={form}&kind=grpo&role=ood&seed=1").content
        for form in ("csv", "parquet")
    }
    assert len(pd.read_csv(io.BytesIO(files["csv"]))) == found["chosen"]
    table = pq.read_table(io.BytesIO(files["parquet"]))
    assert table["q"].to_pylist()[: rows.PAGE] == [row["q"] for row in found["rows"]]


def test_pages_of_rows_are_all_rows_once(client):
    first = client.get("/api/studies/demo-tiny/rows").json()
    seen = [
        (row["stage_id"], row["cell"], row["prompt_index"])
        for number in range(1, first["pages"] + 1)
        for row in client.get(f"/api/studies/demo-tiny/rows?page={number}").json()["rows"]
    ]
    assert len(seen) == len(set(seen)) == first["all"]
    assert first["pages"] > 1
    text = page(client, "/studies/demo-tiny/results?kind=grpo&page=2")
    assert "?kind=grpo&amp;page=1" in text
    assert "form=csv&kind=grpo" in text.replace("&amp;", "&")


def test_a_hostile_value_stays_text(client):
    text = page(client, "/studies/demo-tiny/results?stage_id=%22%3E%3Cscript%3Ealert(1)")
    assert "No row has these values" in text


def test_none_nan_and_an_empty_text_are_one_value():
    values = pa.chunked_array([["", None, "b"]]), pa.chunked_array([[math.nan, None, 0.1, 1e-3]])
    assert list(map(rows._values, values)) == [["-", "b"], ["0.001", "0.1", "-"]]


@pytest.mark.parametrize("content", [b"", b"torn", b"PAR1" * 9])
def test_what_is_no_table_is_refused(content, tmp_path):
    with pytest.raises(StoreError, match="is not a table"):
        rows.look(content, {}, 1)
    found = stored_study.study(tmp_path)
    found.files.write("studies/demo-tiny/results.parquet", content)
    client = TestClient(application(found.url, HOSTS), raise_server_exceptions=False)
    for path in ("/studies/demo-tiny/results", "/api/studies/demo-tiny/results", "/compare?a=demo-tiny&b=demo-tiny"):
        assert client.get(path).status_code == 503


def test_a_table_without_columns_that_a_page_has_is_refused():
    target = io.BytesIO()
    pq.write_table(pa.table({"q": [0.5]}), target)
    with pytest.raises(StoreError, match=r"results\.parquet has no column stage_id"):
        rows.look(target.getvalue(), {}, 1)


# Two studies


def test_a_comparison_is_what_the_command_says(client, store, capsys):
    assert cli.main(["compare", "demo-tiny", "--by", "ood_ratio", "--store", store.url, "--json"]) == 0
    found = client.get("/api/compare?a=demo-tiny&by=ood_ratio").json()
    assert found == json.loads(capsys.readouterr().out)
    assert len(found["comparisons"]) == 1
    text = page(client, "/compare?a=demo-tiny&by=ood_ratio")
    assert "ood_ratio = 0.01 beside 0" in text
    assert "pretrain/sft/grpo-ood-b0.1" in text
    assert "B - A" in page(client, "/compare?a=demo-tiny&b=demo-tiny")
    assert "<option>demo-tiny" in page(client, "/compare")


# Nothing yet


def test_an_empty_study_has_a_page_and_no_results(tmp_path):
    store = Store(str(tmp_path / "store"))
    Study(store, "demo-tiny", "demo", "tiny").add(Plan.of("demo", STAGES, ()))
    Study(store, "none", "demo", "tiny").add(Plan.of("demo", [], ()))
    client = TestClient(application(store.url, HOSTS))
    assert "0 of 0 stages are finished" in page(client, "/studies/none")
    assert "The report comes with the first finished stage" in page(client, "/studies/demo-tiny")
    assert "No study of this store has results yet" in page(client, "/compare")
    for path, said in {
        "report": "no stage of the study demo-tiny has finished yet",
        "results": "no results yet",
    }.items():
        response = client.get(f"/studies/demo-tiny/{path}")
        assert response.status_code == 404
        assert said in response.text
