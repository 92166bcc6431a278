"""The stages of a study as chains: the parent of each, and a table with a column for each kind."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from rayexp.stages import KINDS, Stage
from rayexp.stages.settings import within

#: A stage in the form of ``facts.study``.
Fact = Mapping[str, Any]


def parents(labels: Mapping[str, str], specs: Callable[[Iterable[str]], Mapping[str, Stage]]) -> dict[str, str | None]:
    """Return the id of the parent of each stage of a study; None if the parent is not in the study.

    Labels such as ``CHAIN/pretrain/sft, CONDITION`` name the path of the parent. If no stage fits, or several do, read
    the spec of a finished stage; for an unfinished one, take the candidate that shares most of its condition.
    """
    split = {stage_id: label.partition(", ")[::2] for stage_id, label in labels.items()}
    called: dict[str, list[str]] = {}
    for stage_id, (path, _) in split.items():
        called.setdefault(path, []).append(stage_id)
    among = {
        stage_id: [each for each in called.get(path.rpartition("/")[0], ()) if within(split[each][1], condition)]
        for stage_id, (path, condition) in split.items()
    }
    known = specs([stage_id for stage_id, candidates in among.items() if len(candidates) != 1])
    found: dict[str, str | None] = {}
    for stage_id, candidates in among.items():
        if stage_id in known:
            parent = known[stage_id].parent
            found[stage_id] = parent.id if parent and parent.id in labels else None
        else:
            found[stage_id] = max(candidates, key=lambda each: len(split[each][1]), default=None)
    return found


@dataclass
class Cell:
    """A model of a study in the table, or a gap if ``stage`` is None. name: its label without that of its parent; rows,
    columns: their numbers that it spans; measured: its measurements."""

    stage: Fact | None = None
    name: str = ""
    rows: int = 1
    columns: int = 1
    measured: list[Fact] = field(default_factory=list)


def table(stages: Sequence[Fact]) -> dict[str, Any]:
    """Return the columns of a study's chains, each with its kind, counts and seconds, and rows of cells: one for each
    model without children. A model with several children spans their rows."""
    by_id = {stage["id"]: stage for stage in stages}
    models = [stage for stage in stages if not _measures(stage)]
    columns, placed = _columns(models, by_id)
    below: dict[str | None, list[Fact]] = {}
    for stage in stages:
        below.setdefault(stage["parent"], []).append(stage)

    def rows(stage: Fact, before: int) -> list[list[Cell]]:
        column = placed[stage["id"]]
        children = below.get(stage["id"], ())
        found = [row for child in children if not _measures(child) for row in rows(child, column)]
        found = found or [[Cell(columns=len(columns) - column - 1)] if column + 1 < len(columns) else []]
        above = by_id.get(stage["parent"])
        name = stage["label"].removeprefix(f"{above['label'].partition(', ')[0]}/") if above else stage["label"]
        own = Cell(stage, name, len(found), measured=[child for child in children if _measures(child)])
        gap = [Cell(rows=len(found), columns=column - before - 1)] if column - before > 1 else []
        found[0] = [*gap, own, *found[0]]
        return found

    roots = [stage for stage in models if stage["parent"] is None]
    return {
        "columns": [
            _column(title, [each for each in models if placed[each["id"]] == i]) for i, title in enumerate(columns)
        ],
        "rows": [row for root in roots for row in rows(root, -1)],
        "apart": [stage for stage in stages if _measures(stage) and stage["parent"] is None],
    }


def _measures(stage: Fact) -> bool:
    return stage["kind"] in KINDS and KINDS[stage["kind"]].pool == "measure"


def _column(title: str, stages: Sequence[Fact]) -> dict[str, Any]:
    took = [stage["duration_s"] for stage in stages if stage["duration_s"] is not None]
    finished = sum(stage["state"] == "finished" for stage in stages)
    return {"title": title, "stages": len(stages), "finished": finished, "seconds": sum(took) if took else None}


def _columns(models: Sequence[Fact], by_id: Mapping[str, Fact]) -> tuple[list[str], dict[str, int]]:
    """Return the titles of columns, and the column of each model. A column is a kind, or its second occurrence in a
    chain. If two chains have kinds in different orders, columns are the distances from the root."""
    lines = {stage["id"]: _line(stage, by_id) for stage in models}
    places = {stage_id: _place(line) for stage_id, line in lines.items()}
    before: dict[str, set[str]] = {}
    for stage_id, line in lines.items():
        before.setdefault(places[stage_id], set()).update(_place(line[:-1]) for _ in line[1:2])
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError:
        depths = {stage_id: len(line) - 1 for stage_id, line in lines.items()}
        kinds = [
            dict.fromkeys(lines[i][-1] for i in depths if depths[i] == depth)
            for depth in range(1 + max(depths.values()))
        ]
        return [", ".join(each) for each in kinds], depths
    ranks: dict[str, int] = {}
    for place in order:
        ranks[place] = 1 + max((ranks[each] for each in before[place]), default=-1)
    known = list(KINDS)
    kind = {place: known.index(name) if (name := place.split(" ")[0]) in known else len(known) for place in order}
    titles = sorted(order, key=lambda place: (ranks[place], kind[place]))
    return titles, {stage_id: titles.index(place) for stage_id, place in places.items()}


def _line(stage: Fact, by_id: Mapping[str, Fact]) -> list[str]:
    """Return the kinds from the root to a stage."""
    kinds, seen = [], set()
    while stage["id"] not in seen:
        seen.add(stage["id"])
        kinds.insert(0, stage["kind"])
        stage = by_id.get(stage["parent"], stage)
    return kinds


def _place(line: Sequence[str]) -> str:
    """Return the last kind of a line, with its number from the second of its kind on."""
    nth = Counter(line)[line[-1]]
    return line[-1] if nth == 1 else f"{line[-1]} {nth}"
