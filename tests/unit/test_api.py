"""The project as a library: names without import cost, and an experiment in ten lines."""

import ast
import html
import json
import re
import subprocess
import sys

import pandas as pd
import pytest

import rayexp
from rayexp import api
from rayexp.errors import RefusedError, StageError
from rayexp.store.artifacts import StoreError
from tests.fixtures import local_sweep
from tests.fixtures.checkout import ROOT

EXPERIMENT = rayexp.Experiment(study="demo", scale="toy", ood_ratios=(0.5,), set=("grpo.group_size=2,4",))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store in which EXPERIMENT has run, and the result of ``run``."""
    url = str(tmp_path_factory.mktemp("api") / "runs")
    with local_sweep.without_ray(figures=True):
        return url, rayexp.run(EXPERIMENT, rayexp.RunConfig(store=url))


def test_it_imports_nothing_until_a_name_is_used():
    program = (
        "import sys, rayexp; before = set(sys.modules); dir(rayexp); rayexp.plan(rayexp.Experiment(scale='toy'))\n"
        "print('pydantic' in before, {'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["False", "set()\n"]


def test_its_names_are_those_that_it_lists():
    tree = ast.parse((ROOT / "rayexp/__init__.py").read_text())
    typed = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    names = set(rayexp._MODULES)
    assert names == typed - {"import_module", "TYPE_CHECKING", "Any"}
    assert all(getattr(rayexp, name) is not None for name in names)
    assert names <= set(dir(rayexp))
    with pytest.raises(AttributeError, match="has no attribute 'Experimant'"):
        _ = rayexp.Experimant


def test_a_run_returns_results_with_a_column_for_what_varies(store):
    url, rows = store
    grpo = rows[rows.kind == "grpo"]
    assert sorted(grpo["grpo.group_size"].unique()) == [2, 4]
    assert len(grpo) == 2 * grpo.groupby("grpo.group_size").size().iloc[0]
    pd.testing.assert_frame_equal(rayexp.results(EXPERIMENT, url), rows)
    pd.testing.assert_frame_equal(rayexp.results("demo-toy-grpo.group_size", url), rows)


def test_a_plan_shows_itself_as_a_table(store):
    plan = rayexp.plan(EXPERIMENT, store[0])
    assert repr(plan).startswith("plan of study demo: 8 stages")
    assert "0 trials to run" in repr(plan)


def test_figures_are_pictures_with_their_data(store):
    figures = rayexp.figures(EXPERIMENT, store[0])
    assert figures
    for figure in figures:
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert len(figure.data)


def test_a_figure_can_be_explored_in_a_frame_that_needs_no_network(store):
    figure, *others = rayexp.figures(EXPERIMENT, store[0])
    shown = figure.explore()._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts" ')
    page = html.unescape(re.search(r' srcdoc="([^"]*)"></iframe>$', shown)[1])  # pyright: ignore[reportOptionalSubscript]
    assert json.loads(figure.chart)["layer"]
    assert f'<script type="application/json">{figure.chart}</script>' in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page.partition("<script>")[0])
    assert {bool(other.chart) for other in others} == {True, False}
    plain = next(other for other in others if not other.chart)
    with pytest.raises(ValueError, match=f"{plain.name} has no chart to explore"):
        plain.explore()


def test_stages_of_ones_own_are_run_under_a_name(tmp_path):
    stages = EXPERIMENT.stages()[:2]
    url = str(tmp_path / "runs")
    with pytest.raises(ValueError, match="name is missing; stages of your own need one"):
        rayexp.plan(stages, url)
    with local_sweep.without_ray():
        rows = rayexp.run(stages, rayexp.RunConfig(store=url), "mine")
    assert set(rows.kind) == {"pretrain"}
    pd.testing.assert_frame_equal(rayexp.results("mine", url), rows)
    with pytest.raises(RefusedError, match="study name 'mine' is taken by the study own stages"):
        rayexp.plan(EXPERIMENT, url, "mine")


def test_what_was_removed_since_the_plan_was_made_runs_again(store, capsys):
    job = api.prepare(EXPERIMENT, rayexp.RunConfig(store=store[0]))
    lost = max(job.plan.finished)
    assert api.begin(job).plan.finished == job.plan.finished
    job.store.files.move_folder(f"stages/{lost}", "aside")
    assert api.begin(job).plan.finished == job.plan.finished - {lost}
    assert "finished stages that were removed since planning, and will run again: 1\n" in capsys.readouterr().out
    job.store.files.move_folder("aside", f"stages/{lost}")


def test_a_failure_is_raised_once_all_else_is_done(tmp_path, monkeypatch, capsys):
    url = str(tmp_path / "runs")
    with local_sweep.without_ray():
        monkeypatch.setattr(api, "execute", lambda *_: ["failed: it broke"])
        with pytest.raises(StageError, match=r"^failed: it broke$"):
            rayexp.run(EXPERIMENT, rayexp.RunConfig(store=url))
    assert "report: " in capsys.readouterr().out


@pytest.mark.slow
def test_an_experiment_that_looks_at_its_results_goes_on_until_it_wants_no_more(tmp_path, capsys):
    """Use toy scale, where no ratio has any mass. The search ends after its first pilots; then the chains are run."""
    url, auto = str(tmp_path / "runs"), rayexp.Experiment(study="demo", scale="toy", ood_ratios=("auto",))
    assert {stage.kind for stage in rayexp.plan(auto, url).stages} == {"pretrain", "sft", "evaluate"}
    with local_sweep.without_ray():
        rows = rayexp.run(auto, rayexp.RunConfig(store=url))
    assert set(rows[rows.kind == "grpo"].ood_ratio) == {0.0, 0.5}
    assert set(rows[rows.kind == "sft"].ood_ratio) == {0.0, 0.001, 0.01, 0.1, 0.5}
    said = capsys.readouterr().out
    assert "4 pilot runs first" in said
    assert "ood_ratios auto: 0, 0.5; the mean Q of the pilots was" in said
    assert said.index("pilot runs first") < said.index("the largest ratio has less")
    again = rayexp.plan(auto, url)
    assert not again.to_run
    assert {stage.kind for stage in again.stages} == {"pretrain", "sft", "grpo", "evaluate"}


def test_what_is_not_there_is_said(store, tmp_path):
    with pytest.raises(StoreError, match=r"store=.* has no stages; give the folder"):
        rayexp.results("demo-toy", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match=r"did you mean .demo-toy-grpo\.group_size."):
        rayexp.results("demo-toy-grpo.group_siz", store[0])
