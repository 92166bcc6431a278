"""The benchmark of the pure core, on this machine: it runs without Ray and vLLM, and can be continued."""

import subprocess
import sys

import pytest

from tests.fixtures.checkout import ROOT

SMALL = ["--scale", "toy", "--rounds", "1", "--gemm-size", "64"]
WITHOUT = """
import sys
sys.modules["ray"] = sys.modules["vllm"] = None
import tyro
from benchmarks.gpu import Arguments, main
main(tyro.cli(Arguments))
"""


def output(*arguments: str) -> str:
    command = [sys.executable, "-c", WITHOUT, *SMALL, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_chain_that_ran_out_of_time_ends_as_one_that_did_not(tmp_path):
    whole = output("--chain", str(tmp_path / "whole.pt"))
    for word in ("GEMM", "training", "sampling", "exact Q"):
        assert word in whole
    stopped = output("--chain", str(tmp_path / "parts.pt"), "--limit-s", "0")
    assert "pretraining: step 0 of 8" in stopped
    assert "out of time" in stopped
    finished = output("--chain", str(tmp_path / "parts.pt"))
    assert finished.split("mean Q")[1] == whole.split("mean Q")[1]
