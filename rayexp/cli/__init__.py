"""Look into a store: what is finished, why a stage would run, how two studies differ, what to publish.

    rayexp ls                                       what is in the store
    rayexp show STAGE                               one stage in full
    rayexp explain STAGE --study depth              why it would run, or would not
    rayexp compare depth-tiny other::depth-tiny     two studies, prompt by prompt
    rayexp export depth-tiny --to kit               checkpoints, records, checksums

STAGE is an id, the beginning of one, or a label. Every command but export only reads, and none starts Ray. Exit codes:
0 done, 1 what was looked at is damaged or output could not be written, 2 refused, 130 stopped.
"""

from typing import Annotated, Any, Union

import tyro

from rayexp import terminal
from rayexp.cli.command import run_command
from rayexp.cli.compare import Compare
from rayexp.cli.explain import Explain
from rayexp.cli.export import Export
from rayexp.cli.ls import Ls
from rayexp.cli.show import Show

COMMANDS = {"ls": Ls, "show": Show, "explain": Explain, "compare": Compare, "export": Export}
Command: Any = Union[  # noqa: UP007  one member each, made from a table
    tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())
]


def main(arguments: list[str] | None = None) -> int:
    """The ``rayexp`` command; returns the exit code."""
    return run_command(lambda: terminal.parsed(Command, arguments, prog="rayexp", description=__doc__).run())
