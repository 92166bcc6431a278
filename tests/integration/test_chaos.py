"""The fault campaign in short; ``python -m tests.chaos`` is the long one, docs/reliability.md has its table."""

import subprocess
import sys

import pytest

from tests.fixtures.checkout import ROOT

FAULTS, SEED = 2, 55


@pytest.mark.soak
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_faults_lose_nothing():
    """Run it in a process of its own, all of whose children may be killed."""
    command = [sys.executable, "-m", "tests.chaos", "--faults", str(FAULTS), "--seed", str(SEED), "--chains", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{FAULTS} faults over 1 seeds: 0 rows lost or different" in done.stdout
