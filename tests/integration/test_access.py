"""Access to a cluster of this machine: for nobody but this account. test_jobs.py shows the same of ``make head``."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fixtures import strangers
from tests.fixtures.checkout import ROOT, TOY_SWEEP, plain_shell


def test_the_cluster_of_the_tests_answers_no_stranger(cluster):
    assert strangers.answers(psutil.Process()) == []
    assert strangers.sockets_for_others(psutil.Process()) == []
    strangers.require_refusal(f"http://{cluster['dashboard']}")


@contextlib.contextmanager
def sweep(*options: str):
    """Run a toy sweep that starts a cluster of its own; yield once it has printed the dashboard's address."""
    driver = subprocess.Popen(
        [sys.executable, *TOY_SWEEP[1:], "--seeds", "0", "--kl-betas", "0.1", *options],
        cwd=ROOT,
        env=plain_shell(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert driver.stdout is not None
    said = []
    for line in driver.stdout:
        said.append(line)
        if line.startswith("Ray dashboard:"):
            break
    try:
        yield driver, said
    finally:
        driver.terminate()
        driver.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_the_cluster_of_a_sweep_answers_no_stranger_and_its_token_is_nowhere_else(tmp_path):
    """Check that the driver prints the file of the token, that the dashboard accepts it, and that no log, artifact or
    command has it."""
    with sweep("--store", str(tmp_path / "store")) as (driver, said):
        said_of_it = said[-1].removeprefix("Ray dashboard: ").strip().removesuffix(")")
        address, _, file = said_of_it.partition(" (enter the token in ")
        root, token = psutil.Process(driver.pid), Path(file).read_text()
        session = strangers.session(root)
        assert Path(file).stat().st_mode & 0o077 == 0
        assert strangers.answers(root) == []
        assert strangers.sockets_for_others(root) == []
        strangers.require_refusal(address)
        assert strangers.page(strangers.place(address), "/api/jobs/", Authorization=f"Bearer {token}")[0] == 200
        said += [" ".join(process.cmdline()) for process in [root, *root.children(recursive=True)]]
        assert driver.stdout is not None
        said += driver.stdout
        assert driver.wait(timeout=60) == 0, said
    assert token not in "".join(said)
    assert not Path(file).exists()
    for folder in (tmp_path, session):
        paths = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
        assert len(paths) > 10
        assert [path for path in paths if path.is_file() and token.encode() in path.read_bytes()] == []
