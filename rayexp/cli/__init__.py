"""Look into a store: what is finished, why a stage would run, how two studies differ, what to publish.

    rayexp ls                                       what is in the store
    rayexp show STAGE                               one stage in full
    rayexp explain STAGE --study depth              why it would run, or would not
    rayexp compare depth-tiny other::depth-tiny     two studies, prompt by prompt
    rayexp export depth-tiny --to kit               checkpoints, records, checksums

STAGE is an id, the beginning of one, or a label. Every command but export only reads, and none starts Ray. Exit codes:
0 done, 1 what was looked at is damaged or output could not be written, 2 refused, 130 stopped.
"""

import sys
from typing import Annotated, Any, Union

import tyro

from rayexp import terminal
from rayexp.cli.command import run_command
from rayexp.cli.compare import Compare
from rayexp.cli.explain import Explain
from rayexp.cli.export import Export
from rayexp.cli.ls import Ls
from rayexp.cli.show import Show
from rayexp.errors import not_among

COMMANDS = {"ls": Ls, "show": Show, "explain": Explain, "compare": Compare, "export": Export}
Command: Any = Union[  # noqa: UP007  one member each, made from a table
    tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())
]


def main(arguments: list[str] | None = None) -> int:
    """Run the ``rayexp`` command; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda: _command(words).run())


def _command(words: list[str]) -> Any:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise ValueError(not_among("command", words[0], COMMANDS))
    return terminal.parse_args(Command, words, prog="rayexp", description=__doc__)
