"""``rayexp ls``: every finished stage of a store, and every one that has not finished."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rich import filesize

from rayexp.cli.place import StoreArgs
from rayexp.formatting import one_line
from rayexp.stages import KINDS, kind_in
from rayexp.store.index import Finished, UnfinishedStage
from rayexp.terminal import Column, abbreviated, duration, table, terminal_width

FINISHED = (
    Column("stage"),
    Column("started (UTC)", spare=True),
    Column("took", right=True),
    Column("size", right=True),
    Column("label", cut=True),
)
UNFINISHED = (
    Column("state"),
    Column("stage"),
    Column("step", right=True),
    Column("when (UTC)", spare=True),
    Column("label", cut=True),
)
ORDERS: dict[str, Callable[[Finished], object]] = {
    "label": lambda stage: (stage.label, stage.id),
    "started": lambda stage: (stage.started, stage.label),
    "took": lambda stage: -(stage.duration_s or 0.0),
    "size": lambda stage: -stage.bytes,
}


@dataclass(frozen=True)
class Ls(StoreArgs):
    """List finished stages, and those that have not finished: running, failed, or incomplete."""

    kind: Literal["any", *KINDS] = "any"  # pyright: ignore[reportInvalidTypeForm]
    """Only stages of this kind."""
    study: str = ""
    """Only stages of this study, as it is called below studies/ in the store."""
    sort: Literal["label", "started", "took", "size"] = "label"
    """took and size: the largest first."""

    def run(self) -> int:
        index = self.index()
        among = set(index.study(self.study)) if self.study else None
        finished = [stage for stage in index.finished(among).values() if self.kind in ("any", stage.kind)]
        unfinished = [
            each
            for each in index.unfinished()
            if (among is None or each.id in among) and self.kind in ("any", kind_in(each.id))
        ]
        finished.sort(key=ORDERS[self.sort])  # pyright: ignore[reportArgumentType]
        width = terminal_width()
        name = {stage.id: stage.id for stage in (*finished, *unfinished)}
        if width:
            name = abbreviated(list(name))
        if finished:
            print(table(FINISHED, [_finished(stage, name[stage.id]) for stage in finished], width))
        if unfinished:
            print("\n" * bool(finished) + table(UNFINISHED, [_row(each, name[each.id]) for each in unfinished], width))
        for each in unfinished:
            if each.why:
                print(one_line(f"{'failed' if each.state == 'failed' else 'failed before'}: {each.why}"))
        total = sum(stage.bytes for stage in finished)
        of = f" of {len(among)} in the study" if among is not None and self.kind == "any" else ""
        counts = f"{len(finished)} finished{of}, {filesize.decimal(total)}; {len(unfinished)} unfinished"
        print(f"\n{counts}; store {index.store.url}")
        return 0


def _finished(stage: Finished, name: str) -> tuple[str, ...]:
    took = "-" if stage.duration_s is None else duration(stage.duration_s)
    return name, stage.started[:16].replace("T", " ") or "-", took, filesize.decimal(stage.bytes), stage.label


def _row(stage: UnfinishedStage, name: str) -> tuple[str, ...]:
    step = "-" if stage.step is None else str(stage.step)
    when = "-" if stage.time is None else datetime.fromtimestamp(stage.time, UTC).strftime("%Y-%m-%d %H:%M")
    return stage.state, name, step, when, stage.label or "-"
