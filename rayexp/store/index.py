"""The content of a store, for people: finished and unfinished stages, and studies. Reads only.

What it says of a stage comes from manifests and records that are not verified here; whoever needs the contents reads
them through ``rayexp.store.artifacts``, which verifies.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rayexp.config import parse_record
from rayexp.errors import RefusedError, did_you_mean
from rayexp.stages import Stage, kind_in, parse_stored
from rayexp.store import summaries
from rayexp.store.artifacts import Store, StoreError
from rayexp.store.leases import EXPIRY_S, on_record
from rayexp.store.provenance import other_code
from rayexp.store.summaries import StageSummary

#: How the name of a lease on a whole study begins. Leases without a dot are on trials: no id has one.
STUDY_LEASE = "study."
#: Stages whose manifests and records are in memory at once, of all that are listed.
LOOKED_AT_ONCE = 1_000
#: Candidates that an ambiguous name is answered with.
CANDIDATES_SHOWN = 12


class AmbiguousError(RefusedError):
    """A name that fits several stages. The lines of the message after the first are the candidates."""


@dataclass(frozen=True)
class Finished:
    """A finished stage. provenance: as ``MetricLog.provenance`` wrote it, empty if it can't be read."""

    id: str
    label: str
    files: dict[str, dict[str, Any]]
    versions: tuple[int, ...]
    provenance: dict[str, Any]

    @property
    def kind(self) -> str:
        return kind_in(self.id)

    @property
    def bytes(self) -> int:
        """Return the size of all its files."""
        return sum(map(file_bytes, self.files.values()))

    @property
    def started(self) -> str:
        """Return when its last attempt was started, in ISO 8601, UTC; empty if unknown."""
        started = self.provenance.get("started")
        return started if isinstance(started, str) else ""

    @property
    def duration_s(self) -> float | None:
        """Return the seconds that its last attempt took."""
        took = self.provenance.get("duration_s")
        return float(took) if isinstance(took, int | float) and 0 <= took < 1e12 else None

    @property
    def other_code(self) -> str:
        """Return by which code it was made, if that is not the code at hand or is unknown; else empty."""
        return other_code(self.provenance)

    @property
    def summary(self) -> StageSummary:
        """Return what a list shows of it."""
        return StageSummary(self.id, self.label, self.started, self.duration_s, self.bytes)


@dataclass(frozen=True)
class UnfinishedStage:
    """A stage, or the trial that is named after it, that has not finished.

    state: ``running`` while a driver holds its lease, ``failed`` after a failure, else ``incomplete``. step: of its
    newest checkpoint. time: of the failure, in seconds since 1970. why: the sentence of the last failure."""

    id: str
    state: str
    step: int | None = None
    time: float | None = None
    label: str = ""
    why: str = ""


class StoreIndex:
    """Questions to one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def require_there(self) -> None:
        """Raise StoreError if there is nothing at the store's URL: a misspelt one would look like an empty one."""
        if not any(map(self.store.files.names, ("studies", "work", "stages"))):  # the longest last
            raise StoreError(f"store={self.store.url!r} has no stages; give the folder or URL of a store by --store")

    def finished(self, among: Collection[str] | None = None) -> dict[str, Finished]:
        """Return all finished stages, or those ``among`` some ids, by id."""
        manifests = self.store.manifests(among)
        records = self.records(manifests)
        return {
            stage_id: Finished(
                stage_id,
                label if isinstance(label := manifest.get("label"), str) else "",
                manifest["files"],
                tuple(versions) if isinstance(versions := manifest.get("versions"), list) else (),
                records.get(stage_id, {}),
            )
            for stage_id, manifest in sorted(manifests.items())
        }

    def records(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the provenance of stages, by id; without those that can't be read."""
        return self._json("stages/{}/provenance.json", ids)

    def summaries(self, among: Collection[str] | None = None) -> dict[str, StageSummary]:
        """Return summaries of all finished stages, or of those ``among`` some ids, by id: those that reports wrote
        down, and those of the other stages from their manifests and records."""
        ids = set(self.store.files.names("stages") if among is None else among)
        found = {stage_id: each for stage_id, each in summaries.read(self.store.files).items() if stage_id in ids}
        others = sorted(ids - found.keys())
        for first in range(0, len(others), LOOKED_AT_ONCE):
            some = self.finished(others[first : first + LOOKED_AT_ONCE])
            found |= {stage_id: each.summary for stage_id, each in some.items()}
        return dict(sorted(found.items()))

    def labels(self) -> dict[str, str]:
        """Return the labels of all finished stages by id."""
        return {stage_id: str(manifest.get("label", "")) for stage_id, manifest in self.store.manifests().items()}

    def specs(self, ids: Iterable[str]) -> dict[str, Stage]:
        """Return the values that finished stages were made from; without those that can't be read.

        One that was made under another version, or by an earlier version of the settings, has another id today. Parts
        of classes that are not at hand are ``UnreadPart``.
        """
        found = self.store.files.read_existing([f"stages/{stage_id}/spec.json" for stage_id in ids])
        specs: dict[str, Stage] = {}
        for path, data in found.items():
            try:
                specs[path.split("/")[1]] = parse_stored(data)
            except (ValidationError, RecursionError):
                continue
        return specs

    def failures(self, trials: Iterable[str]) -> dict[str, UnfinishedStage]:
        """Return the last failures of those of the trials that have not succeeded since."""
        records = self._json("work/{}/failure.json", trials)
        return {
            trial: UnfinishedStage(
                trial,
                "failed",
                time=float(when) if isinstance(when := record.get("time"), int | float) and 0 <= when < 1e11 else None,
                label=str(record.get("label", "")),
                why=str(record.get("error", "")),
            )
            for trial, record in records.items()
        }

    def running(self) -> set[str]:
        """Return the ids of the trials that a living driver has a lease on."""
        leases = on_record(self.store.files)
        alive = {driver: self._alive(driver) for driver in {lease.driver for lease in leases}}
        return {lease.work for lease in leases if alive[lease.driver] and "." not in lease.work}

    def unfinished(self) -> list[UnfinishedStage]:
        """Return everything that has not finished, by id."""
        files, running = self.store.files, self.running()
        ids = sorted({*files.names("work"), *running})
        failures, finished = self.failures(ids), self.store.finished_ids(ids)
        unfinished = []
        labels = self.planned() if ids else {}
        for stage_id in ids:
            steps = [name for name in files.names(f"work/{stage_id}") if name.startswith("step-")]
            step = max((int(name[5:]) for name in steps if name[5:].isdecimal()), default=None)
            failed = failures.get(stage_id)
            if failed or stage_id in running or stage_id not in finished:
                state = "running" if stage_id in running else "failed" if failed else "incomplete"
                about = failed or UnfinishedStage(stage_id, state)
                label = labels.get(stage_id, about.label)
                unfinished.append(UnfinishedStage(stage_id, state, step, about.time, label, about.why))
        return unfinished

    def studies(self, having: str = "plan.json") -> list[str]:
        """Return the names of the studies of this store that have a file."""
        names = self.store.files.names
        return [name for name in names("studies") if having in names(f"studies/{name}")]

    def study(self, name: str) -> dict[str, str]:
        """Return the labels, by id and in order, of the stages of a study. Raises StoreError if there is none."""
        labels = _labels(self.about(name))
        if labels is None:
            where = f"{self.store.url}/studies/{name}/plan.json"
            raise StoreError(f"{where} is not a table of labels; remove it, and write it again by `rayexp report`")
        return labels

    def about(self, name: str) -> dict[str, Any]:
        """Return what plan.json holds of a study: labels of its stages, and what makes it one (``rayexp.sweep.study``).
        One of an earlier version holds labels only. Raises StoreError if there is none."""
        try:
            about = parse_record(self.store.files.read(f"studies/{name}/plan.json"))
        except FileNotFoundError:
            known = self.studies()
            there = f"not in the store {self.store.url}, which has {', '.join(known) or 'none'}"
            raise StoreError(f"study={name!r} is {there}{did_you_mean(name, known)}") from None
        return _about(about)

    def planned(self) -> dict[str, str]:
        """Return the labels, by id, of all stages that any study consists of."""
        planned: dict[str, str] = {}
        paths = [f"studies/{name}/plan.json" for name in self.store.files.names("studies")]
        for data in self.store.files.read_existing(paths).values():
            planned |= _labels(_about(parse_record(data))) or {}
        return planned

    def _json(self, path: str, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Read one small record of each of some stages; without those that are not there or are none."""
        paths = {path.format(stage_id): stage_id for stage_id in ids}
        found = self.store.files.read_existing(list(paths))
        return {paths[name]: record for name, data in found.items() if (record := parse_record(data)) is not None}

    def _alive(self, driver: str) -> bool:
        """Return whether a driver has shown, of late and by this machine's clock, that it lives."""
        try:
            beat = self.store.files.modified(f"drivers/{driver}")
        except (FileNotFoundError, StoreError):
            return False
        return time.time() - beat.timestamp() <= EXPIRY_S


def _about(record: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a plan.json holds; one of an earlier version holds labels only."""
    return record if record and isinstance(record.get("stages"), dict) else {"stages": record}


def _labels(about: dict[str, Any]) -> dict[str, str] | None:
    """Return the labels of a study by id; None if they are none."""
    labels = about["stages"]
    return labels if isinstance(labels, dict) and all(isinstance(each, str) for each in labels.values()) else None


def file_bytes(about: Mapping[str, Any]) -> int:
    """Return the size of a file by its manifest; 0 if that does not say."""
    count = about.get("bytes")
    return count if isinstance(count, int) and 0 <= count < 2**63 else 0


def find(text: str, labels: Mapping[str, str], of: str = "a finished stage, as `rayexp ls` lists them") -> str:
    """Return the id among ``labels`` that is meant: an id, the beginning of one, or a label. Raises ValueError where it
    is none of these, and AmbiguousError where it is several. of: what the labels are, for the message."""
    if text in labels:
        return text
    matches = [stage_id for stage_id, label in labels.items() if label == text]
    matches = matches or [stage_id for stage_id in labels if text and stage_id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        meant = did_you_mean(text, [*labels, *labels.values()])
        raise ValueError(f"stage={text!r} should be the id, the beginning of the id, or the label of {of}{meant}")
    shown = [f"  {stage_id}  {labels[stage_id]}" for stage_id in sorted(matches)[:CANDIDATES_SHOWN]]
    more = [f"  and {len(matches) - len(shown)} more"] if len(matches) > len(shown) else []
    raise AmbiguousError("\n".join([f"stage={text!r} fits {len(matches)} stages:", *shown, *more]))
