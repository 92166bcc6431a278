"""``rayexp explain``: why a stage would run or would not, and how it differs from the nearest finished one."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from rayexp.cli.place import LookArgs
from rayexp.experiment import Experiment
from rayexp.formatting import one_line
from rayexp.parts import own_modules
from rayexp.stages import Stage, kind_in, settings
from rayexp.store.index import AmbiguousError, StoreIndex, find
from rayexp.store.provenance import code_here
from rayexp.sweep.plan import Plan
from rayexp.terminal import Column, duration, table, terminal_width

OTHERS_SHOWN = 5
NO_STUDY = Experiment(study="")


@dataclass(frozen=True)
class Explain(LookArgs):
    """Say why a stage would run, or would not. The stage is looked up in the plan of --study and the options of an
    experiment; without --study, in the store."""

    stage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STAGE")]
    """An id, a prefix of one, or a label."""
    experiment: Annotated[Experiment, tyro.conf.OmitArgPrefixes] = NO_STUDY

    def run(self) -> int:
        index = self.index()
        self.print_facts(_facts(index, *self._wanted(index)), _text)
        return 0

    def _wanted(self, index: StoreIndex) -> tuple[str, Stage]:
        """Return the stage that was asked for, and the id that was found, which may be of an earlier version."""
        if self.experiment.study:
            plan = Plan.of(self.experiment.study, self.experiment.stages(), ())
            stage_id = find(self.stage, plan.labels, self._planned(index))
            return stage_id, next(stage for stage in plan.stages if stage.id == stage_id)
        stage_id = find(self.stage, index.labels())
        if stage := index.specs([stage_id]).get(stage_id):
            return stage_id, stage
        raise ValueError(f"stage={stage_id!r} has no spec.json that this version can read")

    def _planned(self, index: StoreIndex) -> str:
        """Say what a stage may be called, and that it is in the store if it is there and not in the plan."""
        of = f"a stage that the study {self.experiment.study} plans with these options"
        with suppress(ValueError, AmbiguousError):
            of += f"; without --study, {find(self.stage, index.labels())} is found in the store"
        return of


def _facts(index: StoreIndex, stage_id: str, stage: Stage) -> dict[str, Any]:
    """Return what is known about a stage: whether it is finished, its failed attempts, and its parent."""
    lineage = {each.id: each.label for each in stage.lineage}
    made = index.finished(lineage)
    finished = made.get(stage_id)
    attempts = index.failures(dict.fromkeys([stage.root.id, stage.subject.id]))
    parent = stage.parent
    return {
        "id": stage_id,
        "id_today": stage.id,
        "kind": stage.kind,
        "label": stage.label,
        "store": index.store.url,
        "finished": finished is not None,
        "would_run": finished is None,
        "started": finished and (finished.started or None),
        "duration_s": finished and finished.duration_s,
        "other_code": {i: each.other_code for i, each in made.items() if each.other_code},
        "code_here": code_here(own_modules([stage])),
        "not_in_store": {i: label for i, label in lineage.items() if i not in made},
        "failures": [{"id": each.id, "time": each.time, "why": each.why} for each in attempts.values()],
        "parent": parent and {"id": parent.id, "label": parent.label, "finished": parent.id in made},
        "version": stage.version,
        "nearest": None if finished else _nearest(index, stage),
    }


def _nearest(index: StoreIndex, stage: Stage) -> dict[str, Any] | None:
    """Return the finished stage of the same kind that differs in the fewest settings, and those settings."""
    specs = index.specs([stage_id for stage_id in index.labels() if kind_in(stage_id) == stage.kind])
    if not specs:
        return None
    mine = settings.along(stage)
    distance = {stage_id: len(settings.differences(mine, settings.along(spec))) for stage_id, spec in specs.items()}
    first, *others = sorted(distance, key=lambda stage_id: (distance[stage_id], stage_id))
    nearest = index.finished([first])[first]
    theirs = settings.along(specs[first])
    if nearest.versions:
        mine |= _named([each.version for each in stage.lineage])
        theirs |= _named(nearest.versions)
    return {
        "id": first,
        "label": nearest.label,
        "settings_differing": distance[first],
        "versions": nearest.versions or None,
        "differing": [
            {"setting": name, "of": settings.kind_at(name, stage), "here": mine.get(name), "there": theirs.get(name)}
            for name, *_ in settings.differences(mine, theirs)
        ],
        "equally_near": [stage_id for stage_id in others if distance[stage_id] == distance[first]],
    }


def _named(versions: Sequence[int]) -> dict[str, int]:
    """Return the versions of the stages of a lineage by dotted name, as ``init.version``."""
    return {f"{'init.' * depth}version": version for depth, version in enumerate(reversed(versions))}


def _text(facts: dict[str, Any]) -> str:
    said = [_finished_text(facts)] if facts["finished"] else [_missing_text(facts), _nearest_text(facts)]
    return "\n".join([facts["id"], facts["label"], "", *said])


def _finished_text(facts: dict[str, Any]) -> str:
    when = f", {facts['started']}" if facts["started"] else ""
    took = "" if facts["duration_s"] is None else f", in {duration(facts['duration_s'])}"
    lines = [
        f"It would not run: it is finished{when}{took}.",
        f"The store {facts['store']} has its artifact under exactly this id, which is a hash of every setting of the",
        "stage and of what it is built on.",
    ]
    for stage_id, code in facts["other_code"].items():
        which = "It" if stage_id == facts["id"] else f"{stage_id}, which it is built on,"
        lines.append(f"{which} was made by {one_line(code)}; the code here is {facts['code_here']}.")
        lines.append(f"Code is not part of an id; `--force {stage_id}` makes it, and all that is built on it, again.")
    absent = facts["not_in_store"].items()
    lines += [f"What it is built on is not all there: {stage_id} ({label}) would run." for stage_id, label in absent]
    return "\n".join(lines)


def _missing_text(facts: dict[str, Any]) -> str:
    """Say that the stage is not in the store, and what is known about failed attempts and its parent."""
    lines = [f"It would run: the store {facts['store']} has no finished stage {facts['id_today']}."]
    for attempt in facts["failures"]:
        why = one_line(attempt["why"])
        lines.append(f"The last attempt at {attempt['id']}, which is run before it or with it, failed: {why}")
    if parent := facts["parent"]:
        state = "finished" if parent["finished"] else "not finished either, and would run first"
        lines.append(f"Its parent {parent['id']} is {state}.")
    return "\n".join(lines)


def _nearest_text(facts: dict[str, Any]) -> str:
    kind, nearest = facts["kind"], facts["nearest"]
    if not nearest:
        return f"\nThe store has no finished {kind} stage to compare it with."
    lines = ["", f"The nearest finished {kind} stage is {nearest['id']} ({one_line(nearest['label'])})."]
    if nearest["differing"]:
        columns = (Column("setting"), Column("of"), Column("this stage", cut=True), Column("that one", cut=True))
        rows = [
            (each["setting"], each["of"], settings.shown(each["here"]), settings.shown(each["there"]))
            for each in nearest["differing"]
        ]
        lines += ["", table(columns, rows, terminal_width())]
    if not nearest["settings_differing"]:
        lines += ["", _same_settings_text(facts)]
    if equals := nearest["equally_near"]:
        more = f", and {len(equals) - OTHERS_SHOWN} more" if len(equals) > OTHERS_SHOWN else ""
        lines += ["", f"In as few settings differ: {', '.join(equals[:OTHERS_SHOWN])}{more}."]
    return "\n".join(lines)


def _same_settings_text(facts: dict[str, Any]) -> str:
    """Say why two ids differ though no setting does."""
    known = "is above" if facts["nearest"]["versions"] else "is not recorded"
    return (
        f"No setting differs, but the ids do, because the version of {facts['kind']} stages is part of an id.\n"
        f"It is {facts['version']} here; that of the other stage {known}. A version is raised when the same settings "
        "give other results."
    )
