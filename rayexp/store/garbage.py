"""Files of a store that no study needs any more, and their removal.

A study needs the stages in its plan.json and their ancestors. If the plan of a study can't be read, nothing is removed,
because its needs are unknown.

A removal and the start of a sweep exclude each other (``alone``). A sweep first writes the stages that it needs into
its plan.json and then checks which of them are finished; a removal reads all plans. Descendants are removed before the
stages that they are built on, and the manifest of an artifact before its other files. This order guarantees that

1. no stage that a sweep relies on is removed, whichever of the two comes first;
2. an interrupted removal leaves no stage that looks finished but lacks files.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rayexp.errors import RefusedError
from rayexp.parts import unread_parts
from rayexp.store import summaries
from rayexp.store.artifacts import FAILURE, STAGED, StoreError
from rayexp.store.filesystem import Files
from rayexp.store.index import STUDY_LEASE, StoreIndex, file_bytes
from rayexp.store.leases import Lease, abandoned, held, on_record
from rayexp.store.manifest import MANIFEST

#: The lease that a sweep holds while it begins, and a removal as long as it lasts.
REMOVAL_LEASE = "store.removal"

#: stage: a finished stage that no study needs. earlier: such a stage from an earlier version, whose id is another one
#: today. checkpoints: those of a stage that is finished or not needed. leftover: files of an interrupted write.
#: replaced: an artifact that --force moved aside and that was made again since. driver: a lease or heartbeat of a dead
#: driver. study: the folder of a study.
Kind = Literal["stage", "earlier", "checkpoints", "leftover", "replaced", "driver", "study"]


@dataclass(frozen=True)
class StudyUse:
    """A study's share of its store. bytes: size of its folder and of all finished stages that it needs. own_bytes: the
    same without stages that other studies need. earlier: number of its finished stages from an earlier version."""

    name: str
    stages: int
    finished: int
    earlier: int
    bytes: int
    own_bytes: int
    has_report: bool


@dataclass(frozen=True)
class Garbage:
    """A file or folder that no study needs."""

    kind: Kind
    path: str
    bytes: int
    label: str = ""


class StoreUse:
    """The needs of all studies of a store, read once."""

    def __init__(self, index: StoreIndex, giving_up: str = "", now: datetime | None = None) -> None:
        """Read the needs of all studies. Raises RefusedError if those of a study are unknown, or if a driver runs a
        stage that no study needs.

        giving_up: name of a study whose needs are ignored. now: time by the clock of the store; by default this
        machine's.
        """
        self._files, self._giving_up = index.store.files, giving_up
        self._abandoned = abandoned(self._files, now or datetime.now(UTC))
        leases = [lease for lease in on_record(self._files) if lease.name not in self._abandoned]
        self._held = {lease.work: lease.driver for lease in leases}
        self._manifests = index.store.manifests()
        self._labels = {stage_id: str(about.get("label", "")) for stage_id, about in self._manifests.items()}
        self._specs = index.specs(self._manifests)
        self._plans = {name: _planned(index, name, giving_up) for name in self._files.names("studies")}
        if giving_up and giving_up not in self._plans:
            index.about(giving_up)  # raises StoreError, with the nearest name
        self._needs = {name: self._needed(planned) for name, planned in self._plans.items()}
        self._others = self._needs_without(giving_up)
        self._given_up = self._needs.get(giving_up, set[str]())
        self._require_not_running()

    def studies(self) -> list[StudyUse]:
        """Return the share of each study."""
        return [self._study(name) for name in self._plans]

    def garbage(self) -> list[Garbage]:
        """Return the files and folders that no study needs, in the order of their removal. If a study is given up,
        return those that only this study needs."""
        found = [*self._stages(), *self._work(), *self._replaced()]
        if self._giving_up:
            path = f"studies/{self._giving_up}"
            return [*found, Garbage("study", path, self._files.bytes_below(path))]
        return [*found, *self._drafts(), *self._drivers()]

    def _study(self, name: str) -> StudyUse:
        planned, needed, folder = self._plans[name], self._needs[name], f"studies/{name}"
        finished, own = planned & self._manifests.keys(), self._files.bytes_below(folder)
        return StudyUse(
            name,
            stages=len(planned),
            finished=len(finished),
            earlier=sum(map(self._earlier, finished)),
            bytes=own + sum(map(self._bytes, needed)),
            own_bytes=own + sum(map(self._bytes, needed - self._needs_without(name))),
            has_report="index.html" in self._files.names(f"{folder}/report"),
        )

    def _needed(self, planned: set[str]) -> set[str]:
        return planned.union(*map(self._ancestors, planned & self._manifests.keys()))

    def _needs_without(self, name: str) -> set[str]:
        """Return the stages that the other studies need."""
        return set[str]().union(*(needed for other, needed in self._needs.items() if other != name))

    def _ancestors(self, stage_id: str) -> set[str]:
        """Return the ids of the stages that a finished one is built on. If its spec has other ids, because an earlier
        version wrote it, return the ids of all stages whose labels fit."""
        spec = self._specs.get(stage_id)
        if spec and spec.id == stage_id:
            return {each.id for each in spec.lineage}
        parts = self._labels[stage_id].split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        return {each for each, label in self._labels.items() if label in above}

    def _earlier(self, stage_id: str) -> bool:
        spec = self._specs.get(stage_id)
        return spec is None or (spec.id != stage_id and not unread_parts(spec))

    def _bytes(self, stage_id: str) -> int:
        about = self._manifests.get(stage_id)
        return sum(map(file_bytes, about["files"].values())) if about else 0

    def _free(self, stage_id: str) -> bool:
        """Return whether a stage may be removed: no other study needs it, and the study to give up, if any, has it."""
        return stage_id not in self._others and (not self._giving_up or stage_id in self._given_up)

    def _require_not_running(self) -> None:
        for trial, driver in self._held.items():
            if "." in trial or trial in self._others - self._given_up:
                continue
            why = f"of the study {self._giving_up}" if trial in self._given_up else "which is in no study's plan.json"
            raise RefusedError(f"the driver {driver} runs {trial}, {why}; stop it, or wait for it")

    def _stages(self) -> Iterator[Garbage]:
        free = [stage_id for stage_id in self._manifests if self._free(stage_id)]
        free.sort(key=lambda stage_id: (-self._labels[stage_id].count("/"), self._labels[stage_id], stage_id))
        for stage_id in free:
            kind = "earlier" if self._earlier(stage_id) else "stage"
            yield Garbage(kind, f"stages/{stage_id}", self._bytes(stage_id), self._labels[stage_id])
        for stage_id in set(self._files.names("stages")) - self._manifests.keys():
            if self._free(stage_id):
                yield self._folder("leftover", f"stages/{stage_id}")

    def _work(self) -> Iterator[Garbage]:
        idle = not any("." not in work for work in self._held)
        for stage_id in self._files.names("work"):
            path = f"work/{stage_id}"
            names = self._files.names(path)
            if self._free(stage_id) or (not self._giving_up and stage_id in self._manifests and FAILURE not in names):
                yield self._folder("checkpoints", path)
            elif idle and not self._giving_up:
                yield from (self._folder("leftover", f"{path}/{name}") for name in names if name.startswith("staged-"))

    def _replaced(self) -> Iterator[Garbage]:
        for stage_id in self._files.names("replaced"):
            if self._free(stage_id) or (not self._giving_up and stage_id in self._manifests):
                yield self._folder("replaced", f"replaced/{stage_id}")

    def _drafts(self) -> Iterator[Garbage]:
        """Yield the reports that an interrupted driver left half-written."""
        for name in self._plans:
            if f"{STUDY_LEASE}{name}" not in self._held:
                drafts = [each for each in self._files.names(f"studies/{name}") if each.startswith(STAGED)]
                yield from (self._folder("leftover", f"studies/{name}/{draft}") for draft in drafts)

    def _drivers(self) -> Iterator[Garbage]:
        return (Garbage("driver", name, len(content)) for name, content in self._abandoned.items())

    def _folder(self, kind: Kind, path: str) -> Garbage:
        return Garbage(kind, path, self._files.bytes_below(path))


def alone(files: Files) -> AbstractContextManager[Lease]:
    """Return a context that holds the lease under which sweeps begin and files are removed."""
    return held(files, REMOVAL_LEASE, "is starting a sweep or removing files")


def remove(index: StoreIndex, paths: Collection[str], study: str = "") -> list[Garbage]:
    """Remove those of ``paths`` that no study needs now. Return the removed ones. study: a study to give up.

    Raises RefusedError as StoreUse does, and LeaseLostError if another driver has taken this process for dead.
    """
    files, removed = index.store.files, list[Garbage]()
    with ExitStack() as leases:
        lease = leases.enter_context(alone(files))
        if study:
            leases.enter_context(held(files, f"{STUDY_LEASE}{study}", "is writing that study"))
        use = StoreUse(index, study, files.modified(f"drivers/{lease.driver}"))
        for each in use.garbage():
            if each.path in paths:
                lease.require_held(files)
                _remove(files, each)
                removed.append(each)
    return removed


def _remove(files: Files, garbage: Garbage) -> None:
    """Remove a file or a folder. Remove the file that marks a folder as complete first."""
    path = garbage.path
    if garbage.kind == "driver":
        files.remove_file(path)
        return
    folder, _, name = path.partition("/")
    if folder == "stages":
        summaries.distrust(files, name)
    if garbage.kind == "study":
        files.remove_file(summaries.path(name))
    files.remove_file(f"{path}/{'plan.json' if garbage.kind == 'study' else MANIFEST}")
    files.remove(path)


def _planned(index: StoreIndex, name: str, giving_up: str) -> set[str]:
    """Return the ids of a study's stages. Raises RefusedError if they are unknown, unless the study is given up."""
    try:
        labels = index.study(name)
    except StoreError:
        labels = {}
    if not labels and name != giving_up:
        raise RefusedError(
            f"study={name!r} has a missing or damaged plan.json, so what it needs is unknown; remove that file and "
            f"write it again by `rayexp report`, or give the study up by --study {name}"
        )
    return set(labels)
