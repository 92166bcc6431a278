"""Bad input is refused before anything starts: one sentence with the field, the value and what it should be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayexp.cli import report
from rayexp.cli import run as sweep
from rayexp.distributed import runtime
from rayexp.sampling import vllm_sampler
from rayexp.studies import STUDIES


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """Return a function that runs the job with arguments, and returns its refusal. It fails if the job starts Ray or
    writes to the store."""
    monkeypatch.setattr(runtime, "connect", lambda: pytest.fail("Ray was started"))
    store = tmp_path / "store"

    def run(*arguments: str) -> str:
        if "--store" not in arguments:
            arguments = (*arguments, "--store", str(store))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            code = sweep.main(list(arguments))
        assert code == 2
        assert not store.exists()
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "field", "value", "allowed"),
    [
        (
            ["--study", "colours"],
            "study",
            "'colours'",
            "contamination, demo, dense, exchange, exposure, fixed-point, gsm, gym, mixing, objections, scaling",
        ),
        (["--scale", "huge"], "scale", "'huge'", "tiny, small, paper"),
        (["--graph", "drawn"], "graph", "'drawn'", "hidden, printed"),
        (["--traversal", "x"], "traversal", "'x'", "uniform, positional"),
        (["--completion-format", "x"], "completion_format", "'x'", "answer, trace"),
        (["--ood-ratios", "0", "0.7"], "ood_ratio", "0.7", "0.5"),
        (["--ood-ratios", "-0.1"], "ood_ratio", "-0.1", "0"),
        (["--ood-ratios", "nan"], "ood_ratio", "nan", "finite"),
        (["--kl-betas", "-1"], "kl_beta", "-1", "0"),
        (["--kl-betas", "inf"], "kl_beta", "inf", "finite"),
        (["--seeds", "-1"], "seed", "-1", "0"),
        (["--train-workers", "0"], "train_workers", "0", "1"),
        (["--rollout-workers", "-2"], "rollout_workers", "-2", "1"),
        (["--learner-cpus", "0"], "learner_cpus", "0", "greater than 0"),
        (["--timeout-s", "0"], "timeout_s", "0", "greater than 0"),
        (["--price", "12.5"], "price", "12.5", "a plan that is printed as text"),
        (["--plan", "--price=-1"], "price", "-1", "a finite number from 0 on"),
        (["--loggers", "csv", "visdom"], "loggers", "'visdom'", "csv, json, mlflow, tensorboard, trackio, wandb"),
        (["--store", "/proc/no/such/place"], "store", "'/proc/no/such/place'", "cannot be written"),
        (["--store", "memory://x"], "store", "'memory://x'", "that every machine reaches"),
        (["--store", "dir::memory://x"], "store", "the memory of one process", "that every machine reaches"),
        (["--store", "simplecache::s3://b/x"], "store", "keeps copies of its own", "that every machine reaches"),
        (["--store", "nosuch://place"], "store", "'nosuch://place'", "fsspec URL"),
        (["--store", "$HOME/runs"], "store", "'$HOME/runs'", "no shell has filled in"),
        (["--store", ""], "store", "''", "a folder"),
    ],
)
def test_refused_in_one_sentence(refusal, arguments, field, value, allowed):
    text = refusal(*arguments)
    assert text.startswith("refused: ")
    assert text.count("\n") == 1
    for part in (field, value, allowed):
        assert part in text


@pytest.mark.parametrize(
    "arguments",
    [["--colour", "red"], ["--seeds", "one"], ["--device", "tpu"], ["extra"], ["--lease", "[]"], ["--study"]],
)
def test_what_is_not_an_option_is_refused(refusal, arguments):
    text = refusal(*arguments)
    assert text.startswith("refused: ")
    assert text.count("\n") == 1
    assert arguments[0].strip("-") in text or arguments[-1] in text


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--study", "dpeth"], "'depth'"),
        (["--scale", "TOY"], "'toy'"),
        (["--graph", "hiden"], "'hidden'"),
        (["--loggers", "tensorbord"], "'tensorboard'"),
        (["--device", "cpuu"], "'cpu'"),
        (["--kl-bets", "1"], "--kl-betas"),
    ],
)
def test_the_nearest_name_is_offered_for_one_that_is_misspelt(refusal, arguments, meant):
    assert refusal(*arguments).endswith(f"; did you mean {meant}?\n")


@pytest.mark.parametrize("option", ["--seeds", "--ood-ratios", "--kl-betas", "--loggers"])
@pytest.mark.parametrize("values", [[], ["--scale", "toy"], [","], [""]])
def test_an_option_for_several_values_needs_one(refusal, option, values):
    assert f"{option} has no value" in refusal(option, *values)
    assert f"{option} has no value" in refusal(f"{option}=", *values)


@pytest.mark.parametrize(
    "seeds",
    [["--seeds", "0,1,2"], ["--seeds", "0,", "1", "2"], ["--seeds=0", "--seeds", "1", "2"], ["--seeds", "0 1,2"]],
)
def test_values_are_joined_whether_repeated_or_separated_by_blanks_or_commas(seeds):
    betas = ["--kl_betas=0.1", "--scale", "toy", "--kl-betas", "1"]
    asked = sweep.parse_args([*seeds, *betas, "--plan"])
    assert (asked.experiment.seeds, asked.experiment.kl_betas, asked.experiment.scale, asked.plan) == (
        (0, 1, 2),
        (0.1, 1.0),
        "toy",
        True,
    )


def test_help_lists_the_studies_with_a_line_each(capsys):
    assert sweep.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in STUDIES:
        assert re.search(rf"^ +{name} +\S+ \S+", said, re.MULTILINE), name


def test_a_user_without_a_home_is_told_to_set_one(refusal, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "HOME is not set" in refusal()


def test_missing_vllm_is_answered_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(vllm_sampler, "find_spec", lambda name: None)
    for device in ("cpu", "cuda"):
        with pytest.raises(vllm_sampler.VLLMMissingError, match=rf'pip install .*"\.\[{device}\]"'):
            vllm_sampler.require_vllm(device)


def test_a_plan_is_printed_and_nothing_is_touched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "connect", lambda: pytest.fail("Ray was started"))
    assert sweep.main(["--study", "depth", "--scale", "paper", "--plan", "--store", str(tmp_path / "store")]) == 0
    printed = capsys.readouterr().out
    for word in ("stages", "if nothing were shared", "cached", "to run", "FLOP"):
        assert word in printed
    assert not (tmp_path / "store").exists()


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert report.main(["--store", str(tmp_path)]) == 2
    assert "has no finished stage of the study demo" in capsys.readouterr().err


def test_a_job_runs_as_a_script(tmp_path):
    script = Path(__file__).parents[3] / "jobs/sweep.py"
    done = subprocess.run([sys.executable, script, "--plan"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("plan of study demo: ")
