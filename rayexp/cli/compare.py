"""``rayexp compare``: two studies, with paired differences."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rayexp.cli.place import StoreArgs
from rayexp.terminal import Column, table, terminal_width

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
class Compare(StoreArgs):
    """Compare the measurements of two studies: mean Q after each stage, and the paired difference B - A with a 95 %
    interval over seeds, then prompts."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A study: NAME, STORE::NAME, or the folder STORE/studies/NAME."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The other study."""
    csv: Path | None = None
    """Write the table to this file as well, unrounded."""

    def run(self) -> int:
        from rayexp.reports.compare import Study, compare  # pandas and scipy, which only this command needs

        one, other = Study.read(self.a, self.store), Study.read(self.b, self.store)
        found = compare(one, other)
        if self.csv:
            try:
                found.table.to_csv(self.csv, index=False)
            except OSError as error:
                raise ValueError(f"csv is {str(self.csv)!r}, which cannot be written ({error.strerror})") from error
        width = terminal_width()
        print(f"A  {one.title}\nB  {other.title}\n")
        print(
            "Stages are paired that agree in all settings along their lineage, prompts by role, cell and prompt_index."
        )
        if found.differing:
            print(f"Settings that are not the same in A and B:\n\n{table(DIFFERING, found.differing, width)}")
        if len(found.table):
            rows = [_row(row) for row in found.table.to_dict("records")]
            print(f"\n{table(TABLE, rows, width)}")
        print(f"\nnot paired: {'; '.join(found.unpaired) or 'nothing'}")
        print("\n".join(found.notes))
        return 0


def _row(row: Mapping[Hashable, Any]) -> list[str]:
    from rayexp.evaluation.metrics import Interval

    means = [f"{row[name]:.3g}" for name in ("mean_q_a", "mean_q_b")]
    counts = [str(row[name]) for name in ("seeds", "pairs")]
    possible = (-row["mean_q_a"], 1 - row["mean_q_a"])
    difference = Interval(row["difference"], row["low"], row["high"], row["seeds"], row["pairs"], possible)
    return [row["stage"], row["ood_ratio"], row["role"], *means, *counts, f"{difference:+.3g}"]
