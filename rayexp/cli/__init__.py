"""Run a study, and look into a store: what is finished, why a stage would run, how two studies differ.

    rayexp run demo --scale toy                     plan a study, run what is missing, write its report
    rayexp plan depth --scale paper                 print what a study would run, and what it would cost
    rayexp report demo --scale toy                  write the report again from the finished stages
    rayexp ls                                       list the stages of a store
    rayexp show STAGE                               show one stage in full
    rayexp explain STAGE --study depth              say why a stage would run, or would not
    rayexp compare depth-tiny other::depth-tiny     compare two studies, prompt by prompt
    rayexp compare depth-tiny --by kl_beta          compare the values of one setting within a study
    rayexp export depth-tiny --to kit               copy checkpoints, results and checksums into a folder to publish
    rayexp export depth-tiny --to hf://ORG/NAME     publish results and decoders on the Hugging Face hub
    rayexp serve --store runs                       show a store in a browser
    rayexp gc                                       list what no study needs any more, and ask whether to remove it

run, plan and report take a study and its options, which `rayexp run --help` lists; the other commands read a store:

    STAGE         an id, a prefix of an id, or a label
    --store       the folder or URL of the store; ./runs if it is not given
    NAME          a study of the store; STORE::NAME is one of another store
    exit codes    0 done, 1 something failed or is damaged, 2 refused, 130 stopped

Only run starts Ray. Only run, report and gc change a store. A job runs `python jobs/sweep.py` with the options of run.
"""

import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Annotated, Any, Union

import tyro

from rayexp import terminal
from rayexp.cli import report, run
from rayexp.cli.command import run_command
from rayexp.cli.compare import Compare
from rayexp.cli.explain import Explain
from rayexp.cli.export import Export
from rayexp.cli.gc import Gc
from rayexp.cli.ls import Ls
from rayexp.cli.serve import Serve
from rayexp.cli.show import Show
from rayexp.errors import none_of

COMMANDS = {
    "ls": Ls,
    "show": Show,
    "explain": Explain,
    "compare": Compare,
    "export": Export,
    "serve": Serve,
    "gc": Gc,
}
#: Commands about a study, which may be their first word instead of --study.
STUDY_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": lambda words: run.main(words, "rayexp run [STUDY]"),
    "plan": lambda words: run.main([*words, "--plan"], "rayexp plan [STUDY]", run.PLAN),
    "report": lambda words: report.main(words, "rayexp report [STUDY]"),
}
#: What help says of them; ``main`` takes them before their words are parsed here.
OF_STUDY = {
    "run": "Plan a study, run what is missing of it on Ray, write its results and its report.",
    "plan": "Print what a study would run, and what that would cost.",
    "report": "Write the results and the report of a study from its finished stages.",
}
LISTED = {name: make_dataclass(name, (), namespace={"__doc__": words}) for name, words in OF_STUDY.items()} | COMMANDS
Command: Any = Union[  # noqa: UP007  one member each, made from a table
    tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in LISTED.items())
]


def main(arguments: list[str] | None = None) -> int:
    """Run the ``rayexp`` command; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and (command := STUDY_COMMANDS.get(words[0])):
        named = len(words) > 1 and not words[1].startswith("-")
        return command(["--study", *words[1:]] if named else words[1:])
    return run_command(lambda: _command(words).run())


def _command(words: list[str]) -> Any:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise ValueError(f"the command {words[0]!r} {none_of(words[0], [*STUDY_COMMANDS, *COMMANDS])}")
    return terminal.parse_args(Command, words, prog="rayexp", description=__doc__)
