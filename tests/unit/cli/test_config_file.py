"""An experiment in a file: the options by name, in YAML or JSON, and its plan."""

import json

import pytest

from rayexp import cli
from rayexp.cli import run
from rayexp.experiment import Experiment

FILE = """
study: depth
scale: toy
ood_ratios: [0, 1e-2]
set:
  grpo.group_size: [4, 8]
  grpo.optimiser.learning_rate: 1e-4
  grpo.advantage: mean_only
run_config:
  train_workers: 2
"""


@pytest.fixture
def asked(tmp_path):
    """Return a function that parses a file and the words after it."""

    def parse(text: str, *words: str, name: str = "experiment.yaml") -> run.Sweep:
        (tmp_path / name).write_text(text)
        return run.parse_args(["--config", str(tmp_path / name), *words])

    return parse


def test_no_word_asks_for_the_study_as_it_is():
    """Parse an empty command line, like that of ``python jobs/sweep.py``."""
    assert run.parse_args([]) == run.Sweep(Experiment(study="demo"))


def test_the_last_word_may_be_that_a_file_follows(asked):
    with pytest.raises(ValueError, match="config"):
        run.parse_args(["--config"])


def test_a_file_says_what_options_say(asked):
    sweep = asked(FILE)
    overrides = ("grpo.group_size=4,8", "grpo.optimiser.learning_rate=1e-4", "grpo.advantage=mean_only")
    options = ["--study=depth", "--scale=toy", "--ood-ratios=0,0.01", "--train-workers=2", "--set", *overrides]
    same = run.parse_args(options)
    assert (sweep.experiment.folder, sweep.resources) == (same.experiment.folder, same.resources)
    assert [stage.id for stage in sweep.experiment.stages()] == [stage.id for stage in same.experiment.stages()]
    assert sweep.experiment.axes == {"grpo.group_size"}


def test_json_is_read_as_well_and_options_come_first(asked):
    text = json.dumps({"study": "depth", "scale": "toy", "set": ["grpo.steps=2"]})
    sweep = asked(text, "--scale", "small", "--set", "grpo.steps=3", name="experiment.json")
    assert (sweep.experiment.study, sweep.experiment.scale) == ("depth", "small")
    assert sweep.experiment.set == ("grpo.steps=3",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stduy: demo", "stduy is not a setting"),
        ("seeds: [x]", "seeds.0='x' should be a valid integer"),
        ("run_config: {train_workers: 0}", "train_workers=0 should be greater than or equal to 1"),
        ("run_config: 3", "run_config=3 should be a mapping"),
        ("[1, 2]", "config='x.yaml' is not a mapping of settings"),
        ("", "config='x.yaml' is not a mapping of settings"),
        ("a: [", "config='x.yaml' is neither YAML nor JSON"),
        ("a: !!python/object:os.system x", "config='x.yaml' is neither YAML nor JSON"),
        ("a: 2026-01-01", "config='x.yaml' is neither YAML nor JSON"),
        ("seeds: [.nan]", "seeds.0="),
    ],
)
def test_what_is_no_experiment_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, text, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    assert cli.main(["plan", "--config", "x.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("refused: ")
    assert said.count("\n") == 1
    assert sentence in said


def test_a_file_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "--config=none.yaml"]) == 2
    assert capsys.readouterr().err == "refused: config='none.yaml' cannot be read (No such file or directory)\n"


def test_a_plan_as_json_has_every_setting_and_is_a_file_that_asks_for_the_same(asked, tmp_path, capsys):
    store = str(tmp_path / "runs")
    assert (
        cli.main(["plan", "depth", "--scale", "toy", "--set", "grpo.group_size=4,8", "--store", store, "--json"]) == 0
    )
    plan = json.loads(capsys.readouterr().out)
    stages = Experiment(study="depth", scale="toy", set=("grpo.group_size=4,8",)).stages()
    assert {stage["id"] for stage in plan["stages"]} == {stage.id for stage in stages}
    assert not any(stage["finished"] for stage in plan["stages"])
    assert plan["experiment"]["seeds"] == [0]
    assert plan["run_config"]["store"] == store
    again = asked(json.dumps(plan["experiment"] | {"run_config": plan["run_config"]}))
    assert again.experiment.folder == plan["experiment"]["name"] == "depth-toy-grpo.group_size"
    assert [stage.id for stage in again.experiment.stages()] == [stage.id for stage in stages]


def test_python_may_give_lists_and_settings_as_a_mapping():
    given = {"ood_ratios": [0, 0.01], "seeds": [1], "set": {"grpo.group_size": [4, 8], "grpo.kl_in": "reward"}}
    texts = ("grpo.group_size=4,8", "grpo.kl_in=reward")
    assert Experiment.model_validate(given) == Experiment(ood_ratios=(0.0, 0.01), seeds=(1,), set=texts)


def test_json_is_for_plans(capsys):
    assert cli.main(["run", "demo", "--json"]) == 2
    assert "--json prints a plan; add --plan" in capsys.readouterr().err
