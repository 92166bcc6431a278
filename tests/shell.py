"""Runs the commands that a page of the documentation shows, or proves of each that it is what the page says.

    python -m tests.shell docs/tutorial.md      in the current folder, one after the other

What takes minutes, needs a cloud, or is run by another test is not run again here; ``PROOFS`` says what stands for it.
A command that no line there knows is an error. So is one that fails.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click
from ray.scripts.scripts import cli as ray_cli

from rayexp import cli
from rayexp.cli import report
from tests import alone

ROOT = Path(__file__).parent.parent
#: Code in running text that is a command, too.
INLINE = re.compile(r"(?<!`)`((?:python|pip|make|ray|rayexp|kubectl|helm|sbatch|\.) [^`\n]+)`")

#: Words that a page leaves open, and what a store with a toy demo has for them.
OPEN = {
    "STAGE": "composition-r0-s0/pretrain",
    "A": "demo-toy",
    "B": "demo-tiny",
    "STUDY": "demo-toy",
    "PLACE": "release",
}
#: What stands in front of a command: NAME=value.
VARIABLE = re.compile(r"(\w+)=(.*)").fullmatch


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a Markdown page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Every command of a Markdown page as words: the lines of its ``sh`` blocks, and those in running text."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [part for code in INLINE.findall(prose) for part in code.split("; ")]
    split = [shlex.split(line.rstrip("& "), comments=True) for line in [*lines, *inline]]
    return [words for words in split if words]


def follow(text: str) -> None:
    """Run every command of a page in its order, then every program in Python; raises what the first bad one raises."""
    for words in commands(text):
        print("$", shlex.join(words), flush=True)
        prove(words)
    for program in blocks(text, "python"):
        exec(compile(program, "<a page>", "exec"), {})


def prove(words: list[str]) -> None:
    """Run one command, or check what stands for it. Raises AssertionError where the page promises too much."""
    command = list(itertools.dropwhile(VARIABLE, words))
    for size in range(len(command), 0, -1):
        if proof := PROOFS.get(" ".join(command[:size])):
            with mock.patch.dict(os.environ, dict(VARIABLE(word).groups() for word in words[: -len(command)])):
                proof(command[size:])
            return
    raise AssertionError(f"nothing in tests/shell.py says how this is proved: {shlex.join(words)}")


def _sweep(arguments: list[str]) -> None:
    """A toy run is run; of any other, and of one into a bucket, the plan is made."""
    if "--help" in arguments:
        assert alone.main(arguments) == 0
        return
    arguments = ["runs" if "://" in word else word for word in arguments]
    real = "toy" in arguments and "--plan" not in arguments
    assert alone.main(arguments if real else [*arguments, "--plan"]) == 0, f"refused: {arguments}"


def _report(arguments: list[str]) -> None:
    assert report.main(arguments) == 0


def _rayexp(arguments: list[str]) -> None:
    """On the store ``runs`` of the current folder, with something there for what the page leaves open."""
    assert cli.main([OPEN.get(word, word) for word in arguments]) == 0


def _tests(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments], cwd=ROOT)
    assert done.returncode == 0, arguments


def _module(arguments: list[str]) -> None:
    """It is there. These are run by hand, for minutes; their parts have tests of their own."""
    path = ROOT / arguments[0].replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"no such module: {arguments[0]}"


def _pip(arguments: list[str]) -> None:
    """The extras that it asks for are there; CI installs some of them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"\[(.+)\]", arguments[-1])
    assert set(asked.split(",")) <= extras.keys(), asked


def _make(arguments: list[str]) -> None:
    """CI runs ``make test``, which runs the rest; ``make demo`` is a sweep; test_jobs.py starts ``make head``."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert arguments[0] in targets, f"no such target: {arguments[0]}"


def _ray(arguments: list[str]) -> None:
    """The installed Ray has the command and every option of it, and files that it names are there."""
    command: click.Command = ray_cli
    own, _, entrypoint = " ".join(arguments).partition(" -- ")
    words = own.split()
    while isinstance(command, click.Group):
        assert words, f"not a command of Ray: {arguments}"
        command = command.commands[words.pop(0)]
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
    if own.startswith("symmetric-run"):  # it hands on what it does not know itself
        known |= {name for option in ray_cli.commands["start"].params for name in option.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"ray {command.name} has no option {word}"
        if word.endswith(".yaml"):
            assert (ROOT / word).exists(), word
    if entrypoint and "$" not in entrypoint:
        prove(entrypoint.split())


def _files(arguments: list[str]) -> None:
    """For somebody else's cluster: test_cluster.py checks what the files say, this that they are there."""
    named = [word for word in arguments if word.endswith((".yaml", ".sh"))]
    assert all((ROOT / name).exists() for name in named), named


def _nothing(arguments: list[str]) -> None:
    """It changes the shell only."""


PROOFS: dict[str, Callable[[list[str]], None]] = {
    "python jobs/sweep.py": _sweep,
    "python jobs/report.py": _report,
    "python -m pytest": _tests,
    "python -m": _module,
    "pip": _pip,
    "rayexp": _rayexp,
    "make": _make,
    "ray": _ray,
    "docker": _files,
    "kubectl": _files,
    "helm": _files,
    "sbatch": _files,
    ".": _nothing,
    "cat": _nothing,
    "chmod": _nothing,
    "export": _nothing,
}


if __name__ == "__main__":
    follow(Path(sys.argv[1]).read_text())
