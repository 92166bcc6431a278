"""``rayexp explain``: why a stage would run, or would not: how it differs from the nearest finished ones."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import tyro

from rayexp.cli.place import StoreArgs
from rayexp.experiment import Experiment
from rayexp.formatting import one_line
from rayexp.stages import Stage, kind_in, settings
from rayexp.store.index import Finished, StoreIndex, find
from rayexp.store.provenance import code_here
from rayexp.sweep.plan import Plan
from rayexp.terminal import Column, duration, table, terminal_width

OTHERS_SHOWN = 5
NO_STUDY = Experiment(study="")


@dataclass(frozen=True)
class Explain(StoreArgs):
    """Say why a stage would run, or would not. With --study, and the options of an experiment, it is looked for in the
    plan of that study; without, in the store."""

    stage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STAGE")]
    """An id, the beginning of one, or a label."""
    experiment: Annotated[Experiment, tyro.conf.OmitArgPrefixes] = NO_STUDY

    def run(self) -> int:
        index = self.index()
        stage_id, stage = self._wanted(index)
        finished = index.finished([stage_id]).get(stage_id)
        print(f"{stage_id}\n{stage.label}\n")
        if finished and stage.id == stage_id:
            print(_finished(index, finished, stage))
        else:
            print(_missing(index, stage))
            print(_nearest(index, stage))
        return 0

    def _wanted(self, index: StoreIndex) -> tuple[str, Stage]:
        """Return the stage that is asked for, and the id that names it, which may be of an earlier version."""
        if self.experiment.study:
            plan = Plan.of(self.experiment.study, self.experiment.stages(), ())
            stage_id = find(self.stage, plan.labels, self._planned(index))
            return stage_id, next(stage for stage in plan.stages if stage.id == stage_id)
        stage_id = find(self.stage, index.labels())
        if stage := index.specs([stage_id]).get(stage_id):
            return stage_id, stage
        raise ValueError(f"stage is {stage_id!r}, whose spec.json is not there or is none that this version can read")

    def _planned(self, index: StoreIndex) -> str:
        """Say what the stage may be, and where it is if it is in the store and not in the plan."""
        of = f"a stage that the study {self.experiment.study} plans with these options"
        with suppress(ValueError):
            of += f"; without --study, {find(self.stage, index.labels())} is found in the store"
        return of


def _finished(index: StoreIndex, finished: Finished, stage: Stage) -> str:
    when = f", {finished.started}" if finished.started else ""
    took = "" if finished.duration_s is None else f", in {duration(finished.duration_s)}"
    lines = [
        f"It is finished{when}{took}, and would not run.",
        f"The store {index.store.url} has its artifact, with a manifest, under exactly this id, which is a hash of",
        "every setting of the stage and of what it is built on.",
    ]
    for each in index.finished([each.id for each in stage.lineage]).values():
        if each.other_code:
            which = "It" if each.id == stage.id else f"{each.id}, which it is built on,"
            lines.append(f"{which} was made by {one_line(each.other_code)}; here is {code_here()}.")
            lines.append(f"Code is no part of an id; `--force {each.id}` makes it again, and all that is built on it.")
    there = index.store.finished_ids([each.id for each in stage.lineage])
    absent = [each for each in stage.lineage if each.id not in there]
    lines += [f"What it is built on is not all there: {each.id} ({each.label}) would run." for each in absent]
    return "\n".join(lines)


def _missing(index: StoreIndex, stage: Stage) -> str:
    """Say that the stage is not in the store, and what is known of attempts at it and of its parents."""
    lines = [f"It would run: the store {index.store.url} has no finished stage {stage.id}."]
    subject = stage.subject
    trials = [stage.root.id, subject.id]
    for attempt in index.failures(dict.fromkeys(trials)).values():
        why = one_line(attempt.why)
        lines.append(f"The last attempt at {attempt.id}, which it is run with or built on, failed: {why}")
    if parent := stage.parent:
        done = index.store.finished(parent.id)
        lines.append(f"Its parent {parent.id} is {'finished' if done else 'not finished either, and would run first'}.")
    return "\n".join(lines)


def _nearest(index: StoreIndex, stage: Stage) -> str:
    """Name the finished stages of its kind that differ from it in the fewest settings, and in which."""
    kind = stage.kind
    ids = [stage_id for stage_id in index.labels() if kind_in(stage_id) == kind]
    specs = index.specs(ids)
    if not specs:
        return f"\nNo {kind} stage is finished there that it could be compared with."
    mine = settings.along(stage)
    distance = {stage_id: len(settings.differences(mine, settings.along(spec))) for stage_id, spec in specs.items()}
    order = sorted(distance, key=lambda stage_id: (distance[stage_id], stage_id))
    nearest = index.finished(order[:1])[order[0]]
    theirs = settings.along(specs[nearest.id])
    if nearest.versions:
        mine |= _named([each.version for each in stage.lineage])
        theirs |= _named(nearest.versions)
    differing = settings.differences(mine, theirs)
    lines = ["", f"The nearest finished {kind} stage is {nearest.id} ({one_line(nearest.label)})."]
    if differing:
        columns = (Column("setting"), Column("of"), Column("this stage", cut=True), Column("that one", cut=True))
        rows = [
            (name, settings.kind_at(name, stage), settings.shown(here), settings.shown(there))
            for name, here, there in differing
        ]
        lines += ["", table(columns, rows, terminal_width())]
    if not distance[nearest.id]:
        lines += ["", _same_settings(stage, nearest)]
    equals = [stage_id for stage_id in order[1:] if distance[stage_id] == distance[nearest.id]]
    if equals:
        more = f", and {len(equals) - OTHERS_SHOWN} more" if len(equals) > OTHERS_SHOWN else ""
        lines += ["", f"In as few settings differ: {', '.join(equals[:OTHERS_SHOWN])}{more}."]
    return "\n".join(lines)


def _same_settings(stage: Stage, nearest: Finished) -> str:
    """Say why two ids differ though no setting does."""
    known = "is above" if nearest.versions else "is not recorded"
    return (
        f"No setting differs, and the id does: the version of {stage.kind} stages is part of it.\n"
        f"It is {stage.version} here; that of the other one {known}. It is raised when the same settings would give "
        "another result."
    )


def _named(versions: Sequence[int]) -> dict[str, int]:
    """Return the versions that the stages of a lineage were made under, by dotted names."""
    return {f"{'init.' * depth}version": version for depth, version in enumerate(reversed(versions))}
