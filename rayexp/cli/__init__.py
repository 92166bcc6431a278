"""Run a study, and look into a store: what is finished, why a stage would run, how two studies differ.

    rayexp run demo --scale toy                     plan a study, run what is missing, write its report
    rayexp plan depth --scale paper                 what a study would do
    rayexp report demo --scale toy                  its table and page again, from what is there
    rayexp ls                                       what is in the store
    rayexp show STAGE                               one stage in full
    rayexp explain STAGE --study depth              why it would run, or would not
    rayexp compare depth-tiny other::depth-tiny     two studies, prompt by prompt
    rayexp compare depth-tiny --by kl_beta          two values of a setting within one study
    rayexp export depth-tiny --to kit               checkpoints, records, checksums
    rayexp export depth-tiny --to hf://ORG/NAME     results, and decoders, to the Hugging Face hub
    rayexp serve --store runs                       all of a store, in a browser
    rayexp gc                                       what no study needs any more; asks, and removes it

STAGE is an id, the beginning of one, or a label. `rayexp run --help` lists what a study can be asked for; `python
jobs/sweep.py` is the same for `ray job submit`. Only run starts Ray; run, report and gc change a store. Exit codes: 0
done, 1 something failed or is damaged, 2 refused, 130 stopped.
"""

import sys
from collections.abc import Callable
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
#: Commands that are about a study, and take it as their first word or as --study.
STUDY_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": lambda words: run.main(words),
    "plan": lambda words: run.main([*words, "--plan"]),
    "report": lambda words: report.main(words),
}
Command: Any = Union[  # noqa: UP007  one member each, made from a table
    tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())
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
