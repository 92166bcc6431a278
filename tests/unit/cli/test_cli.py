"""The ``rayexp`` command on small stores: its output for whole, damaged, unfinished and hostile ones."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rayexp import api, cli
from rayexp.api import Job
from rayexp.cli import run
from rayexp.config import RunConfig
from rayexp.evaluation.measure import SCHEMA
from rayexp.evaluation.metrics import cluster_bootstrap
from rayexp.experiment import Experiment
from rayexp.reports.compare import Study, compare
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain, parse_stage, settings
from rayexp.store.artifacts import Store
from rayexp.store.index import AmbiguousError, StoreIndex, find
from rayexp.store.provenance import source
from rayexp.sweep.placement import nodes_of
from rayexp.sweep.plan import Plan
from rayexp.sweep.preview import ClusterResources, render_plan
from rayexp.sweep.study import Study as InStore
from tests.fixtures import simulated_study
from tests.fixtures.factories import OPTIMISER
from tests.fixtures.simulated_study import PROMPTS_PER_CELL, RECORD, published, study_stages
from tests.fixtures.stored_study import GRID, STAGES, other_study, study


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store of a finished study, which tests only read."""
    return study(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """Return a function that runs the command, and returns its exit code and its output, or its refusal."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        if code == 2:
            progress, refused, why = captured.err.partition("refused: ")
            assert refused
            assert not progress or arguments[0] == "export"
            assert not captured.out
            return code, refused + why
        return code, captured.out

    return run


# ls


def test_ls_lists_finished_stages_by_label(whole, said):
    code, text = said("ls", "--store", whole.url)
    assert code == 0
    listing, total = text.split("\n\n")
    lines = listing.splitlines()[1:]
    labels = [line.split()[-1] for line in lines]
    assert labels == sorted(stage.label for stage in STAGES)
    for stage in STAGES:
        (line,) = [line for line in lines if line.startswith(stage.id)]
        assert "2026-01-02 03:04  90" not in line
        assert "2026-01-02 03:04  1.5 min" in line
    assert total.startswith(f"{len(STAGES)} finished, ")


def test_ls_picks_a_kind_a_study_and_an_order(whole, said):
    ids = [line.split()[0] for line in said("ls", "--store", whole.url, "--kind", "grpo")[1].splitlines()[1:-2]]
    assert sorted(ids) == sorted(stage.id for stage in STAGES if isinstance(stage, GRPO))
    assert (
        f"{len(STAGES)} finished of {len(STAGES)} in the study"
        in said("ls", "--store", whole.url, "--study", "demo-tiny", "--sort", "size")[1]
    )
    code, text = said("ls", "--store", whole.url, "--study", "depth-tiny")
    assert (code, text.count("\n")) == (2, 1)
    assert "study='depth-tiny' is not in the store" in text
    assert "demo-tiny" in text


def test_ls_tells_running_failed_and_incomplete_apart(tmp_path, said):
    store = study(tmp_path, finished=2)
    grpo, other = [stage for stage in STAGES if isinstance(stage, GRPO)][:2]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    store.save_checkpoint(grpo.id, 7, checkpoint)
    failure = {"label": other.label, "error": f"{other.label}, step 3: out of luck", "time": 1_767_323_045}
    store.files.write(f"work/{other.id}/failure.json", json.dumps(failure).encode())
    store.files.write(f"leases/{STAGES[2].id}.000001", b"somebody")
    store.files.write("drivers/somebody", b"")
    text = said("ls", "--store", store.url)[1]
    lines = {line.split()[1]: line for line in text.splitlines() if line and not line.startswith("failed: ")}
    assert lines[grpo.id].split() == ["incomplete", grpo.id, "7", "-", grpo.label]
    assert lines[other.id].startswith("failed ")
    assert lines[other.id].endswith(f"2026-01-02 03:04  {other.label}")
    assert f"\nfailed: {other.label}, step 3: out of luck\n" in text
    assert lines[STAGES[2].id].split() == ["running", STAGES[2].id, "-", "-", STAGES[2].label]


def test_a_failure_of_a_later_stage_is_not_tidied_away_with_the_finished_one(tmp_path):
    store = published(tmp_path, STAGES[:1], RECORD)
    for name in ("failure.json", "rollouts/0.parquet"):
        store.files.write(f"work/{STAGES[0].id}/{name}", b"{}")
        store.files.write(f"work/{STAGES[2].id}/{name}", b"{}")
    store.files.write(f"work/{STAGES[0].id}-x/{name}", b"{}")
    store.tidy()
    assert [attempt.state for attempt in StoreIndex(store).unfinished()] == ["failed", "incomplete", "failed"]


# show


def test_show_says_all_of_it(whole, said):
    grpo = next(stage for stage in STAGES if isinstance(stage, GRPO))
    code, text = said("show", grpo.label, "--store", whole.url)
    assert code == 0
    for part in (grpo.id, grpo.init.id, grpo.root.id, "ood_ratio", "kl_beta", "host", "somewhere", "abc", "1.5 min"):
        assert part in text
    measurement = next(s for s in STAGES if isinstance(s, Evaluate) and s.init == grpo)
    assert f"built on it\n  stage                      label\n  {measurement.id}" in text
    assert "rollout/reward" in text
    rows = whole.table(measurement.id, "results.parquet").to_pandas()
    for (_, cell), some in rows.groupby(["role", "cell"]):
        (line,) = [line for line in text.splitlines() if line.split()[1:3] == [cell, str(PROMPTS_PER_CELL)]]
        assert str(cluster_bootstrap([np.exp(some["log_mass"].to_numpy())])) in line
    assert "not read" in text
    assert "load\n" not in text  # the fixture's stages have no weights


def test_show_takes_an_id_or_the_beginning_of_one(whole, said):
    for name in (STAGES[0].id, STAGES[0].id[:-4]):
        assert said("show", name, "--store", whole.url)[1].startswith(STAGES[0].id)
    code, text = said("show", "grpo-", "--store", whole.url)
    assert code == 2
    assert text.splitlines()[0] == "refused: stage='grpo-' fits 4 stages:"
    assert [line.split()[0] for line in text.splitlines()[1:]] == sorted(s.id for s in STAGES if isinstance(s, GRPO))


def test_many_candidates_are_not_all_listed():
    with pytest.raises(AmbiguousError, match="fits 100 stages") as error:
        find("sft", {f"sft-{i:016x}": "x" for i in range(100)})
    assert str(error.value).endswith("and 88 more")


def test_show_tells_how_to_load_weights_and_verifies_them(tmp_path, said):
    folder = tmp_path / "files"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    store = Store(str(tmp_path / "store"))
    store.publish(STAGES[0], folder, RECORD)
    code, text = said("show", STAGES[0].id, "--store", store.url, "--verify")
    assert code == 0
    assert f'from_pretrained("{store.url}/stages/{STAGES[0].id}/model")' in text
    assert text.count("  verified  ") == 3
    store.files.write(f"stages/{STAGES[0].id}/model/config.json", b"{ }")
    code, text = said("show", STAGES[0].id, "--store", store.url, "--verify")
    assert code == 1
    assert text.count("  DAMAGED   ") == 1
    assert "model/config.json: its SHA-256 is " in text


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"kind": "pretrain"}', None])
def test_a_stage_whose_spec_is_gone_is_shown_all_the_same(tmp_path, said, damage):
    store = published(tmp_path, STAGES[:2], RECORD)
    path = f"stages/{STAGES[0].id}/spec.json"
    store.files.remove_file(path) if damage is None else store.files.write(path, damage)
    code, text = said("show", STAGES[0].id, "--store", store.url)
    assert code == 0
    assert "its spec.json is missing, or cannot be read by this version" in text
    code, text = said("explain", STAGES[0].id, "--store", store.url)
    assert (code, text.count("\n")) == (2, 1)


def test_show_says_by_which_code_a_stage_was_made(whole, tmp_path, said):
    assert re.search(r"^  code +the code here$", said("show", STAGES[0].id, "--store", whole.url)[1], re.MULTILINE)
    store = published(tmp_path, STAGES[:1], {**RECORD, "source": "0f0f"})
    text = said("show", STAGES[0].id, "--store", store.url)[1]
    assert f"other code (source 0f0f, commit abc); the code here is source {source()}" in text


def test_measurements_from_before_gold_tokens_were_kept_are_listed_shown_and_compared(tmp_path, said, monkeypatch):
    """Use version 3, whose results lack a column, and whose ids no present stage has."""
    with monkeypatch.context() as before:
        before.setattr(Evaluate, "version", 3)
        before.setattr(simulated_study, "SCHEMA", SCHEMA.remove(SCHEMA.get_field_index("token_log_mass")))
        old = [stage.model_copy() for stage in STAGES[:2]]
        store = published(tmp_path, old, RECORD)
    assert STAGES[1].id != old[1].id
    assert "token_log_mass" not in store.table(old[1].id, "results.parquet").column_names
    assert old[1].id in said("ls", "--store", store.url)[1]
    for name in (old[0].id, old[1].id):
        code, text = said("show", name, "--store", store.url)
        assert code == 0
        shown = [line for line in text.splitlines() if f" {PROMPTS_PER_CELL} " in line]
        assert len(shown) == len(STAGES[0].root.task.roles())

    store = study(tmp_path / "study", STAGES, finished=2)
    path = Path(store.url, "studies/demo-tiny/results.parquet")
    added = ["token_log_mass", "init_token_log_mass", "fixed_point", "highest_fixed_point", "beyond_theory"]
    pd.read_parquet(path).drop(columns=added).to_parquet(path)
    assert said("compare", "demo-tiny", "demo-tiny", "--store", store.url)[0] == 0


# explain


def test_a_finished_stage_would_not_run(whole, said):
    code, text = said("explain", STAGES[0].label, "--store", whole.url)
    assert code == 0
    assert "It would not run: it is finished, 2026-01-02T03:04:05+00:00, in 1.5 min." in text


@pytest.mark.parametrize(("made_by", "said_of_it"), [("0f0f", "other code (source 0f0f"), (None, "unknown code")])
def test_explain_says_that_other_code_made_a_stage_or_what_it_is_built_on(tmp_path, said, made_by, said_of_it):
    same = published(tmp_path, STAGES[:3], RECORD)
    assert "here is" not in said("explain", STAGES[2].id, "--store", same.url)[1]
    store = published(tmp_path / "other", STAGES[:1], {**RECORD, "source": made_by})
    shutil.copytree(f"{same.url}/stages/{STAGES[2].id}", f"{store.url}/stages/{STAGES[2].id}")
    assert f"It was made by {said_of_it}" in said("explain", STAGES[0].id, "--store", store.url)[1]
    text = said("explain", STAGES[2].id, "--store", store.url)[1]
    assert f"{STAGES[0].id}, which it is built on, was made by {said_of_it}" in text
    assert f"--force {STAGES[0].id}" in text


def test_a_stage_of_a_plan_is_compared_with_the_nearest_finished_one(tmp_path, said):
    chosen = Experiment(study="demo", scale="tiny", ood_ratios=(0.0, 0.01), kl_betas=(0.1,), seeds=(0,))
    wanted = chosen.stages()
    near = wanted[2].model_copy(update={"samples": 77})
    assert isinstance(near, SFT)
    far = near.model_copy(update={"init": near.init.model_copy(update={"seed": 5})})
    store = published(tmp_path, [near, far], RECORD)
    grid = ["--study", "demo", "--ood-ratios", "0", "0.01", "--kl-betas", "0.1", "--seeds", "0", "--store", store.url]
    code, text = said("explain", wanted[2].label, *grid)
    assert code == 0
    assert f"has no finished stage {wanted[2].id}" in text
    assert f"parent {wanted[0].id} is not finished either" in text
    assert f"The nearest finished sft stage is {near.id}" in text
    (line,) = [line for line in text.splitlines() if line.startswith("samples")]
    assert line.split() == ["samples", "sft", "2000", "77"]
    assert "seed" not in text
    assert "The store has no finished grpo stage" in said("explain", wanted[4].label, *grid)[1]


def test_a_stage_outside_of_the_plan_is_said_to_be_outside(whole, said):
    grid = ["--study", "demo", "--scale", "toy", "--store", whole.url]
    code, text = said("explain", STAGES[0].id, *grid)
    assert (code, text.count("\n")) == (2, 1)
    assert "a stage that the study demo plans with these options" in text
    assert f"without --study, {STAGES[0].id} is found in the store" in text
    code, text = said("explain", "nothing", *grid)
    assert code == 2
    assert "found in the store" not in text
    assert "`rayexp ls` lists" not in text


def test_a_raised_version_is_what_differs_where_no_setting_does(tmp_path, said, monkeypatch):
    store = published(tmp_path, STAGES[:3], RECORD)
    monkeypatch.setattr(Pretrain, "version", 3)
    stages = study_stages(**GRID)
    assert stages[2].id != STAGES[2].id
    text = said("explain", STAGES[2].id, "--store", store.url)[1]
    assert f"has no finished stage {parse_stage(stages[2].model_dump_json()).id}" in text
    (line,) = [line for line in text.splitlines() if line.startswith("init.version")]
    assert line.split() == ["init.version", "pretrain", "3", "2"]
    assert "No setting differs, but the ids do" in text
    assert f"today the same settings have the id {stages[2].id}" in said("show", STAGES[2].id, "--store", store.url)[1]


def test_the_last_failure_is_part_of_the_explanation(tmp_path, said):
    store = published(tmp_path, STAGES[:1], RECORD)
    tuned = STAGES[2]
    store.files.write(f"work/{tuned.root.id}/failure.json", b'{"error": "out of luck"}')
    grid = ["--study", "demo", "--ood-ratios", "0", "--kl-betas", "0.1", "--seeds", "0", "--store", store.url]
    chosen = Experiment(study="demo", scale="tiny", ood_ratios=(0.0,), kl_betas=(0.1,), seeds=(0,)).stages()
    text = said("explain", chosen[2].label, *grid)[1]
    assert ("out of luck" in text) == (tuned.root.id == chosen[0].id)


def test_differences_go_along_the_lineage():
    grpo = next(stage for stage in STAGES if isinstance(stage, GRPO))
    above = GRPO(init=grpo, prompt_role="id", kl_beta=0.5, optimiser=OPTIMISER, seed=0)
    other = above.model_copy(update={"kl_beta": 0.25, "init": grpo.model_copy(update={"kl_beta": 3.0})})
    found = settings.differences(settings.along(above), settings.along(other))
    assert found == [("kl_beta", 0.5, 0.25), ("init.kl_beta", 0.1, 3.0)]
    shorter = settings.differences(settings.along(above), settings.along(above.model_copy(update={"init": grpo.init})))
    assert ("init.init.init.ood_ratio", 0.0, settings.ABSENT) in shorter
    names = ("seed", "init.seed", "init.init.seed")
    assert [settings.kind_at(name, above) for name in names] == ["grpo", "grpo", "sft"]


# compare


def test_stages_are_paired_but_for_what_differs(whole, tmp_path):
    """Give GRPO of B another beta. Its gain differs, by the fixture's formula, and everything else is the same."""
    other = other_study(tmp_path, kl_beta=1.0)
    found = compare(Study.read("demo-tiny", whole.url), Study.read(f"{other.url}::demo-tiny", "nowhere"))
    assert found.differing == [("grpo", "kl_beta", [0.1], [1.0], "left out of it")]
    assert found.unpaired == []
    assert len(found.table) == 3 * 2 * 3  # stages of a chain, ratios, roles
    grpo = found.table[found.table["stage"] == "pretrain/sft/grpo-ood-b0.1|grpo-ood-b1"]
    rest = found.table.drop(grpo.index)
    assert len(grpo) == 6
    assert (rest["difference"] == 0).all()
    assert (grpo["difference"] < 0).all()
    a, b = (pd.read_parquet(f"{store.url}/studies/demo-tiny/results.parquet") for store in (whole, other))
    key = ["seed", "ood_ratio", "role", "cell", "prompt_index"]
    pairs = a[a.kind == "grpo"].merge(b[b.kind == "grpo"], on=key)
    some = pairs[(pairs.ood_ratio == 0.01) & (pairs.role == "ood")]
    expected = cluster_bootstrap([(g.q_y - g.q_x).to_numpy() for _, g in some.groupby("seed")])
    row = grpo[(grpo["ood_ratio"] == "0.01") & (grpo["role"] == "ood")].iloc[0]
    assert tuple(row[["difference", "low", "high", "seeds", "pairs"]]) == (
        pytest.approx(expected.mean),
        pytest.approx(expected.low),
        pytest.approx(expected.high),
        2,
        2 * 2 * PROMPTS_PER_CELL,
    )
    assert (row["mean_q_a"], row["mean_q_b"]) == pytest.approx((some.q_x.mean(), some.q_y.mean()))
    assert "8 pairs of stages are one and the same stage" in found.notes[0]


def test_what_has_no_partner_is_counted(whole, tmp_path):
    """Give B one seed less, one ratio more, and half of the prompts of one stage."""
    smaller = study(tmp_path, study_stages(**GRID | {"seeds": (0,), "ood_ratios": (0.0, 0.01, 0.05)}))
    path = Path(smaller.url, "studies/demo-tiny/results.parquet")
    rows = pd.read_parquet(path)
    first = rows["stage_id"] == rows["stage_id"].iloc[0]
    rows[~first | (rows["prompt_index"] < PROMPTS_PER_CELL // 2)].to_parquet(path, index=False)
    found = compare(Study.read("demo-tiny", whole.url), Study.read("demo-tiny", smaller.url))
    assert found.unpaired == [
        "6 of 12 measured stages of A (2 grpo, 2 pretrain, 2 sft)",
        f"{8 * PROMPTS_PER_CELL // 2} prompts of paired stages of A",
        "3 of 9 measured stages of B (1 grpo, 1 pretrain, 1 sft)",
    ]
    assert ("pretrain", "seed", [0, 1], [0], "paired where equal") in found.differing
    assert set(found.table["seeds"]) == {1}
    assert "One seed" in found.notes[-1]


def test_studies_with_nothing_in_common_say_so(whole, tmp_path, said):
    grid: dict[str, Any] = GRID | {"seeds": (2, 3)}
    strange = study(tmp_path, study_stages(**grid))
    code, text = said("compare", "demo-tiny", f"{strange.url}/studies/demo-tiny/", "--store", whole.url)
    assert code == 0
    assert "no value in common: nothing pairs" in text
    assert "12 of 12 measured stages of A" in text


def test_compare_prints_and_writes_csv(whole, tmp_path, said):
    other = other_study(tmp_path, kl_beta=1.0)
    code, text = said("compare", "demo-tiny", f"{other.url}::demo-tiny", "--store", whole.url, "--csv", "table.csv")
    assert code == 0
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for row in rows:
        (line,) = [
            line for line in text.splitlines() if line.split()[:3] == [row["stage"], row["ood_ratio"], row["role"]]
        ]
        assert f"{float(row['difference']):+.3g} [" in line
    assert said("compare", "demo-tiny", "demo-tiny", "--store", whole.url, "--csv", "/proc/x.csv")[0] == 2


def test_settings_that_differ_within_a_study_are_compared_apart(tmp_path, said):
    """Give both studies two group sizes. Each stage is paired with the one of the same size."""
    sizes = [GRPO.model_fields["group_size"].default, 4]
    stores = []
    for name in ("a", "b"):
        stages = [
            stage.model_copy(update={"init": subject}) if isinstance(stage, Evaluate) else subject
            for size in sizes
            for stage in STAGES
            for subject in [stage.init if isinstance(stage, Evaluate) else stage]
            for subject in [subject.model_copy(update={"group_size": size}) if isinstance(subject, GRPO) else subject]
        ]
        (tmp_path / name).mkdir()
        stores.append(study(tmp_path / name, list({stage.id: stage for stage in stages}.values())).url)
    found = compare(Study.read("demo-tiny", stores[0]), Study.read("demo-tiny", stores[1])).table
    grpo = found[found["stage"].str.contains("grpo")]
    assert set(grpo["stage"]) == {f"pretrain/sft/grpo-ood-b0.1, group_size = {size}" for size in sizes}
    assert (grpo["pairs"] <= 2 * 2 * 2 * PROMPTS_PER_CELL).all()
    assert grpo.groupby(["stage", "ood_ratio", "role"]).size().eq(1).all()


def test_a_difference_that_may_be_anything_is_uncertain(tmp_path, said):
    """Let one seed lose as much as the other gains."""
    for name, masses in (("a", {0: 0.0, 1: 1.0}), ("b", {0: 1.0, 1: 0.0})):
        store = study(tmp_path / name)
        path = Path(store.url, "studies/demo-tiny/results.parquet")
        rows = pd.read_parquet(path)
        rows.assign(q=rows["seed"].map(masses)).to_parquet(path, index=False)
    code, text = said("compare", f"{tmp_path}/a/store::demo-tiny", f"{tmp_path}/b/store::demo-tiny")
    assert code == 0
    assert text.count("+0 (uncertain with 2 seeds)") == 18


@pytest.mark.parametrize("reference", ["demo-big", "nowhere::demo-tiny", "some/where", "::", "../..::x", "a::../x"])
def test_a_study_that_is_not_there_is_refused(whole, said, reference):
    code, text = said("compare", "demo-tiny", reference, "--store", whole.url)
    assert (code, text.count("\n")) == (2, 1)


def test_a_study_that_compare_would_refuse_is_not_offered(tmp_path, said):
    store = study(tmp_path)
    InStore(store, "planned-only", "demo", "tiny").add(Plan.of("demo", STAGES, ()))
    store.files.write("studies/stray/note.txt", b"")
    code, text = said("compare", "planned-only", "demo-tiny", "--store", store.url)
    assert (code, text.count("\n")) == (2, 1)
    assert text.endswith("; those with results are demo-tiny\n")
    code, text = said("ls", "--study", "stray", "--store", store.url)
    assert code == 2
    assert text.endswith("demo-tiny, planned-only\n")


@pytest.mark.parametrize("damage", [b"", b"PAR1 PAR1", "columns"])
def test_results_that_are_none_are_refused(tmp_path, said, damage):
    store = study(tmp_path, STAGES, finished=2)
    path = Path(store.url, "studies/demo-tiny/results.parquet")
    if damage == "columns":
        pd.read_parquet(path).drop(columns=["q"]).to_parquet(path)
    else:
        path.write_bytes(damage)
    code, text = said("compare", "demo-tiny", "demo-tiny", "--store", store.url)
    assert (code, text.count("\n")) == (2, 1)
    assert "results.parquet" in text


# export


@pytest.fixture
def kit(whole, tmp_path, said) -> Path:
    assert said("export", "demo-tiny", "--to", tmp_path / "kit", "--store", whole.url)[0] == 0
    return tmp_path / "kit"


def test_a_kit_is_whole_and_is_a_store(whole, kit, said):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=kit, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    files = {file.relative_to(kit).as_posix() for file in kit.rglob("*") if file.is_file()}
    assert {line.split(": ")[0] for line in checked.stdout.splitlines()} == files - {"SHA256SUMS"}
    copy = Store(str(kit))
    assert copy.finished_ids() == whole.finished_ids()
    assert copy.damaged(stage.id for stage in STAGES) == {}
    assert StoreIndex(copy).finished() == StoreIndex(whole).finished()
    assert said("compare", "demo-tiny", f"{kit}::demo-tiny", "--store", whole.url)[0] == 0
    assert "studies/demo-tiny/report/index.html" in files


def test_the_records_of_a_kit_rebuild_every_stage(kit):
    rows = pq.read_table(kit / "records.parquet").to_pylist()
    assert [row["id"] for row in rows] == [stage.id for stage in STAGES]
    for row, stage in zip(rows, STAGES, strict=True):
        assert parse_stage(row["spec"]) == stage
        assert json.loads(row["provenance"]) == RECORD
        assert row["init_id"] == (stage.parent.id if stage.parent else None)


def test_what_is_damaged_gets_into_no_kit(tmp_path, capsys):
    store = study(tmp_path, finished=4)
    store.files.write(f"stages/{STAGES[1].id}/results.parquet", b"half")
    assert cli.main(["export", "demo-tiny", "--to", str(tmp_path / "kit"), "--store", store.url]) == 1
    failed = capsys.readouterr().err.splitlines()[-1]
    assert failed.startswith("failed: ")
    assert f"{STAGES[1].id}/results.parquet is damaged" in failed
    assert not (tmp_path / "kit" / "SHA256SUMS").exists()


def test_a_kit_goes_nowhere_where_something_is(whole, kit, said, tmp_path):
    code, text = said("export", "demo-tiny", "--to", kit, "--store", whole.url)
    assert code == 2
    assert " is not empty; give" in text
    (tmp_path / "file").write_text("x")
    assert said("export", "demo-tiny", "--to", tmp_path / "file", "--store", whole.url)[0] == 2
    assert said("export", "demo-tiny", "--to", "/proc/no/where", "--store", whole.url)[0] == 2
    assert said("export", "depth-tiny", "--to", tmp_path / "new", "--store", whole.url)[0] == 2
    assert not (tmp_path / "new").exists()


def test_a_kit_goes_to_other_filesystems(whole, said):
    assert said("export", "demo-tiny", "--to", "memory://kit-of-a-test", "--store", whole.url)[0] == 0
    copy = Store("memory://kit-of-a-test")
    assert copy.damaged(copy.finished_ids()) == {}
    assert len(copy.finished_ids()) == len(STAGES)


# Failures


def test_only_a_record_that_is_there_is_named(tmp_path):
    store, plan = Store(str(tmp_path)), Plan.of("demo", STAGES, ())
    first, second, third = plan.trials[:3]
    store.files.write(f"work/{first.id}/failure.json", b"{}")
    job = Job(plan.stages, InStore(store, "demo", "demo", "tiny"), plan, RunConfig())
    failed = {first.id: "it broke", second.id: "it never started"}
    assert api._unsuccessful(failed, {third.id}, job) == [
        f"failed: it broke (details: {tmp_path}/work/{first.id}/failure.json)",
        "failed: it never started",
        f"not run, because another trial failed: {third.label} ({third.id})",
    ]


# Places


@pytest.mark.parametrize("folder", ["runs", "[runs]*?", "a#b %20", "größe::2"])
def test_every_command_means_the_same_folder(tmp_path, said, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home" / folder
    home.mkdir(parents=True)
    whole = study(home)
    place = f"~/{folder}/store"
    asked = run.parse_args([f"--store={place}", "--name=another"])
    assert api.prepare(asked.experiment, asked.run_config()).store.url == whole.url == f"{home}/store"
    listing = said("ls", f"--store={place}", "--study", "demo-tiny")
    assert listing == said("ls", f"--store=file://{home}/store", "--study", "demo-tiny")
    assert f"{len(STAGES)} finished of {len(STAGES)}" in listing[1]
    for other in (f"{place}::demo-tiny", f"{place}/studies/demo-tiny/"):
        assert said("compare", "demo-tiny", other, f"--store={place}")[0] == 0
    assert said("export", "demo-tiny", f"--to=~/{folder}/kit", f"--store={place}")[0] == 0
    assert (home / "kit" / "SHA256SUMS").is_file()
    assert not (tmp_path / "~").exists()


# Refusals


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--store", "nowhere"],
        ["ls", "--store", "nosuch://place"],
        ["ls", "--kind", "colour"],
        ["ls", "--colour", "red"],
        ["show", "grpo-0123"],
        ["show"],
        ["explain", "x", "--study", "colours"],
        ["export", "demo-tiny"],
        ["paint"],
        [],
    ],
)
def test_refused_in_one_sentence(said, arguments):
    code, text = said(*arguments)
    assert (code, text.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["lss"], "'ls'"),
        (["ls", "--kind", "grp"], "'grpo'"),
        (["ls", "--study", "demo-tinny"], "'demo-tiny'"),
        (["export", "demo-tinny", "--to", "kit"], "'demo-tiny'"),
        (["compare", "demo-tiny", "demo-tinny"], "'demo-tiny'"),
        (["show", STAGES[0].label[:-1]], repr(STAGES[0].label)),
        (["explain", STAGES[0].label[:-1]], repr(STAGES[0].label)),
        (["explain", "x", "--study", "dmeo"], "'demo'"),
        (["show", "x", "--verfy"], "--verify"),
    ],
)
def test_the_nearest_name_is_offered_for_one_that_is_misspelt(whole, said, arguments, meant):
    code, text = said(*arguments, "--store", whole.url)
    assert (code, text.count("\n")) == (2, 1)
    assert text.endswith(f"; did you mean {meant}?\n")


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "/", "a\nb\x1b[31m", "x" * 5000, "💥", "\udcff"])
def test_names_that_lead_nowhere(whole, said, name):
    for arguments in (
        ["show", name],
        ["explain", name],
        ["ls", "--study", name or "."],
        ["export", name, "--to", "kit"],
    ):
        code, text = said(*arguments, "--store", whole.url)
        assert code == 2
        assert text.count("\n") == 1 or name == ""
        assert text.isascii() or "💥" in text
        assert not Path("kit").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", {"label": ["x"], "versions": "many"}),
        ("manifest.json", {"label": "a\nb\x1b[31m"}),
        ("provenance.json", {"started": 5, "duration_s": -1, "packages": [], "run_config": 3, "git": {"a": {"b": 1}}}),
        ("provenance.json", {"duration_s": 10**400, "started": "x" * 5000}),
        ("provenance.json", []),
    ],
)
def test_what_strangers_wrote_is_shown_as_text(tmp_path, said, file, content):
    store = study(tmp_path, finished=2)
    path = Path(store.url, "stages", STAGES[0].id, file)
    if file == "manifest.json":
        content = json.loads(path.read_bytes()) | content
        content["files"]["spec.json"]["bytes"] = 10**400
    path.write_text(json.dumps(content))
    failure = {"time": 1e300, "error": "\x1b[31m\nout of luck", "label": {}}
    for trial in ("x", STAGES[0].id):
        store.files.write(f"work/{trial}/failure.json", json.dumps(failure).encode())
    for arguments in (["ls"], ["show", STAGES[0].id], ["explain", STAGES[0].id]):
        code, text = said(*arguments, "--store", store.url)
        assert code == 0
        assert "\x1b" not in text
    machines = ClusterResources(nodes_of([{"CPU": 1.0}]), "a test")
    state = render_plan(Plan.of("demo", STAGES, ()), StoreIndex(store), RunConfig(), machines)
    assert "out of luck" in state
    assert "\x1b" not in state


# The process


def test_it_starts_fast_and_loads_neither_ray_nor_torch(whole):
    program = (
        "import sys; from rayexp.cli import main\n"
        f"codes = [main([*c, '--store', {whole.url!r}]) for c in (['ls'], ['show', {STAGES[1].id!r}], "
        f"['explain', {STAGES[0].id!r}])]\n"
        "print(codes, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("[0, 0, 0] ")
    assert not {name.split(".")[0] for name in last.split()} & {"ray", "torch", "transformers", "vllm"}


def test_the_plan_says_what_is_finished_of_it(whole):
    assert Experiment(scale="toy").folder == "demo-toy"
    assert StoreIndex(whole).study("demo-tiny") == {stage.id: stage.label for stage in STAGES}


# Signals

STOPPED_TWICE = """
import os, signal, sys, time
from rayexp.cli.command import run_command, stopped_once

class Last:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM):
        kill(me, number)

last = Last()  # goes when Python does, after everything that was to be called at exit

def command():
    with stopped_once():
        {start}
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleaned up")

sys.exit(run_command(command))
"""


@pytest.mark.parametrize("start", ["pass", "sys.exit(15)", "raise KeyboardInterrupt"])
def test_of_several_signals_the_first_stops_a_command_and_the_others_are_answered(start):
    """Send signals also while Ray starts, which raises SystemExit for them."""
    code = STOPPED_TWICE.format(start=start)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    if start == "pass":
        assert done.stdout == "cleaned up\n"
        assert done.stderr.splitlines() == ["already stopping, which takes a few seconds"] * 2
