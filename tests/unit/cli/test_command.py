"""Commands end with the right exit code, wherever their output goes and whenever something fails."""

import os
import shlex
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from rayexp.cli.command import run_command, working
from rayexp.errors import RefusedError, StageError
from rayexp.store.artifacts import StoreError
from tests.fixtures.checkout import ROOT

#: Commands of every kind, in a shell's notation. None of them finds anything to work on.
COMMANDS = {
    "rayexp": '-c "import sys; from rayexp import cli; sys.exit(cli.main())" --help',
    "sweep": "jobs/sweep.py --scale toy --plan --store /nowhere",
    "benchmarks": "-m benchmarks --help",
}
#: A program that prints text outside of ASCII, and at its end the outcome.
PRINTING = """
import sys
from rayexp.cli.command import run_command
def command():
    print("first")
    for _ in range(10_000):
        print("\\u03b2", flush=True)
    print("last", file=sys.stderr)
    return {}
sys.exit(run_command(command))
"""


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``python`` is this Python. The exit code is that of the first command in a pipe."""
    script = f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    env = os.environ | environment
    return subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def printing(redirection: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    return shell(f"python -c {shlex.quote(PRINTING.format(code))} {redirection}", **environment)


@pytest.mark.parametrize("redirection", ["| head -1", ">&-", "<&- >&-"])
@pytest.mark.parametrize("code", [0, 1])
def test_output_that_nobody_reads_neither_stops_a_command_nor_changes_its_exit_code(redirection, code):
    done = printing(redirection, code)
    assert (done.returncode, done.stderr) == (code, "last\n")


def test_output_that_is_lost_to_a_full_disk_is_said_when_the_work_is_done():
    done = printing("> /dev/full")
    assert done.returncode == 1
    assert done.stderr == "last\nfailed: standard output cannot be written (No space left on device)\n"
    assert printing("> /dev/full 2>&1").returncode == 1
    assert printing("2> /dev/full").returncode == 0


def test_what_an_encoding_lacks_is_spelt():
    done = printing("", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == ["first", r"\u03b2"]
    done = printing("", LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
    assert done.stdout.splitlines()[:2] == ["first", r"\u03b2"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_runs_so(command):
    done = shell(f"python {command} > /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("failed: standard output cannot be written")
    done = shell(f"python {command} | head -1")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


class _Model(BaseModel):
    seed: int


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as error:
        _Model.model_validate({"seed": "x"})
    return error.value


ERRORS = [
    (ValueError("seed is -1"), "seed is -1", "ValueError: seed is -1"),
    (ConnectionError("nobody\nanswers"), "nobody", "ConnectionError: nobody"),
    (PermissionError(13, "Permission denied", "runs"), "[Errno 13] Permission denied: 'runs'", "Permission denied"),
    (StoreError("the store is gone"), "the store is gone", "the store is gone"),
    (StageError("a/pretrain, step 3: out of luck"), "a/pretrain, step 3", "a/pretrain, step 3"),
    (RefusedError("too large:\n1 CPU"), "too large:\n1 CPU", "too large:"),
    (invalid(), "seed='x' should be a valid integer", "seed='x' should be a valid integer"),
]


@pytest.mark.parametrize(("error", "refused", "failed"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_is_a_refusal_until_work_has_begun_and_a_failure_from_then_on(error, refused, failed, capsys):
    def begin() -> int:
        raise error

    def work() -> int:
        with working():
            raise error

    assert run_command(begin) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"refused: {refused}")
    assert said.count("\n") == refused.count("\n") + 1
    assert run_command(work) == 1
    said = capsys.readouterr().err
    assert said.startswith("failed: ")
    assert failed in said
    assert said.count("\n") == 1


def test_a_fault_of_this_project_keeps_its_traceback_and_a_stop_is_quiet():
    def stopped() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyError):
        run_command(lambda: {}["x"])
    assert run_command(stopped) == 130


def test_streams_are_as_they_were_afterwards():
    before = sys.stdout, sys.stderr
    assert run_command(lambda: 0) == 0
    assert (sys.stdout, sys.stderr) == before
