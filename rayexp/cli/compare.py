"""``rayexp compare``: paired differences between two studies, or between the values of a setting within one."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rayexp.cli.place import LookArgs
from rayexp.service import facts
from rayexp.stages import settings
from rayexp.terminal import Column, table, terminal_width

if TYPE_CHECKING:
    from rayexp.reports.compare import Comparison, Study

TABLE = (
    Column("stage", cut=True),
    Column("OOD ratio"),
    Column("role"),
    Column("Q in A", right=True),
    Column("Q in B", right=True),
    Column("seeds", right=True, spare=True),
    Column("pairs", right=True),
    Column("B - A [95 %]"),
)
DIFFERING = (Column("of"), Column("setting"), Column("A", cut=True), Column("B", cut=True), Column("in the pairing"))


@dataclass(frozen=True)
class Compare(LookArgs):
    """Compare two studies, or the values of one setting within a study: mean Q after each stage, and the paired
    difference B - A with a 95 % interval over seeds and prompts."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A study: NAME, STORE::NAME, or the folder STORE/studies/NAME."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[B]")] = ""
    """The other study."""
    by: str = ""
    """Instead of B, a setting that varies in A, such as grpo.kl_beta: one table for each of its other values beside the
    first. The word condition compares each condition of the study with its control."""
    csv: Path | None = None
    """Also write the table, unrounded, to this file."""

    def run(self) -> int:
        from rayexp.reports.compare import compare  # pandas and scipy, which only this command needs

        first, *others = self._studies()
        found = [compare(first, other) for other in others]
        if self.csv:
            _write_csv(self.csv, found)
        self.print_facts(facts.comparisons(first.by, found), _text)
        return 0

    def _studies(self) -> "list[Study]":
        """Return the studies, or parts of one, to compare: the first with each of the others."""
        from rayexp.reports.compare import Study

        if bool(self.b) == bool(self.by):
            given = "B and --by are both given" if self.b else "neither B nor --by is given"
            raise ValueError(f"{given}; give A B for two studies, or A --by SETTING for one")
        study = Study.read(self.a, self.store)
        return study.parts(self.by) if self.by else [study, Study.read(self.b, self.store)]


def _write_csv(path: Path, found: "Sequence[Comparison]") -> None:
    import pandas as pd

    tables = [each.table.assign(**each.values) for each in found]
    try:
        pd.concat(tables).to_csv(path, index=False)
    except OSError as error:
        raise ValueError(f"csv={str(path)!r} cannot be written ({error.strerror})") from error


def _text(found: dict[str, Any]) -> str:
    return "\n\n".join(map(_comparison_text, found["comparisons"]))


def _comparison_text(found: dict[str, Any]) -> str:
    width = terminal_width()
    lines = [
        f"A  {found['a']}\nB  {found['b']}\n",
        f"Stages are paired if they {facts.PAIRED[found['of_conditions']]}; prompts are paired by role, cell and "
        "prompt_index.",
    ]
    if found["differing"]:
        rows = [
            (each["of"], each["setting"], settings.listed(each["a"]), settings.listed(each["b"]), each["in_pairing"])
            for each in found["differing"]
        ]
        lines.append(f"Settings that differ between A and B:\n\n{table(DIFFERING, rows, width)}")
    if found["table"]:
        lines.append(f"\n{table(TABLE, map(_row, found['table']), width)}")
    return "\n".join([*lines, f"\nnot paired: {'; '.join(found['unpaired']) or 'nothing'}", *found["notes"]])


def _row(row: Mapping[Hashable, Any]) -> list[str]:
    from rayexp.reports.compare import difference_text

    means = [f"{row[name]:.3g}" for name in ("mean_q_a", "mean_q_b")]
    counts = [str(row[name]) for name in ("seeds", "pairs")]
    return [row["stage"], row["ood_ratio"], row["role"], *means, *counts, difference_text(row)]
