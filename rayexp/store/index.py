"""The content of a store, for people: finished and unfinished stages, and studies. Reads only.

Manifests and records are not verified here. ``rayexp.store.artifacts`` verifies the contents that it reads.
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

#: Prefix of the name of a lease on a study. Leases on trials are named by ids, which have no dot.
STUDY_LEASE = "study."
#: Stages whose manifests and records are held in memory at the same time.
LOOKED_AT_ONCE = 1_000
#: Candidates in the message about an ambiguous name.
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
        """Return the time at which its last attempt started, in ISO 8601, UTC; empty if unknown."""
        started = self.provenance.get("started")
        return started if isinstance(started, str) else ""

    @property
    def duration_s(self) -> float | None:
        """Return the seconds that its last attempt took; None if unknown."""
        took = self.provenance.get("duration_s")
        return float(took) if isinstance(took, int | float) and 0 <= took < 1e12 else None

    @property
    def other_code(self) -> str:
        """Describe the code that made it, if that is unknown or differs from the present code; else return ''."""
        return other_code(self.provenance)

    @property
    def summary(self) -> StageSummary:
        """Return its row in a list of stages."""
        return StageSummary(self.id, self.label, self.started, self.duration_s, self.bytes)


@dataclass(frozen=True)
class UnfinishedStage:
    """An unfinished stage, or an unfinished trial that is named after its first stage.

    state: ``running`` while a driver holds its lease, ``failed`` after a failure, else ``incomplete``. step: of its
    newest checkpoint. time: of the failure, in seconds since 1970. why: message of the last failure."""

    id: str
    state: str
    step: int | None = None
    time: float | None = None
    label: str = ""
    why: str = ""


class StoreIndex:
    """A read-only view of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def require_there(self) -> None:
        """Raise StoreError if there is no store at the URL, because a misspelt URL would look like an empty store."""
        if not any(map(self.store.files.names, ("studies", "work", "stages"))):  # the longest listing last
            raise StoreError(f"store={self.store.url!r} has no stages; give the folder or URL of a store by --store")

    def finished(self, among: Collection[str] | None = None) -> dict[str, Finished]:
        """Return all finished stages, or the finished ones ``among`` some ids, by id."""
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
        """Return the provenance of stages, by id. Leave out records that can't be read."""
        return self._json("stages/{}/provenance.json", ids)

    def summaries(self, among: Collection[str] | None = None) -> dict[str, StageSummary]:
        """Return the summaries of all finished stages, or of the finished ones ``among`` some ids, by id.

        They come from the files that reports wrote, and for the other stages from manifests and records.
        """
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
        """Return the stages that the specs of finished ids describe, by id. Leave out specs that can't be read.

        A spec of another ``version`` of the stage, or with an earlier set of settings, has another id today. Parts
        whose classes are not imported are ``UnreadPart``.
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
        """Return the last failure of each of these trials that has not succeeded since, by id."""
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
        """Return the ids of the trials on which a living driver has a lease."""
        leases = on_record(self.store.files)
        alive = {driver: self._alive(driver) for driver in {lease.driver for lease in leases}}
        return {lease.work for lease in leases if alive[lease.driver] and "." not in lease.work}

    def unfinished(self) -> list[UnfinishedStage]:
        """Return all unfinished stages and trials, ordered by id."""
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
        """Return the names of the studies that have the file ``having``."""
        names = self.store.files.names
        return [name for name in names("studies") if having in names(f"studies/{name}")]

    def study(self, name: str) -> dict[str, str]:
        """Return the labels of a study's stages, by id and in order. Raises StoreError if there is no such study."""
        labels = _labels(self.about(name))
        if labels is None:
            where = f"{self.store.url}/studies/{name}/plan.json"
            raise StoreError(f"{where} is not a table of labels; remove it, and write it again by `rayexp report`")
        return labels

    def about(self, name: str) -> dict[str, Any]:
        """Return the content of a study's plan.json: the labels of its stages, and what makes it one study
        (``rayexp.sweep.study``). An earlier version's has labels only. Raises StoreError if there is no such study."""
        try:
            about = parse_record(self.store.files.read(f"studies/{name}/plan.json"))
        except FileNotFoundError:
            known = self.studies()
            there = f"not in the store {self.store.url}, which has {', '.join(known) or 'none'}"
            raise StoreError(f"study={name!r} is {there}{did_you_mean(name, known)}") from None
        return _about(about)

    def planned(self) -> dict[str, str]:
        """Return the labels of all stages in the plan of any study, by id."""
        planned: dict[str, str] = {}
        paths = [f"studies/{name}/plan.json" for name in self.store.files.names("studies")]
        for data in self.store.files.read_existing(paths).values():
            planned |= _labels(_about(parse_record(data))) or {}
        return planned

    def _json(self, path: str, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Read one small JSON record of each of these stages, by id. Leave out missing and invalid ones."""
        paths = {path.format(stage_id): stage_id for stage_id in ids}
        found = self.store.files.read_existing(list(paths))
        return {paths[name]: record for name, data in found.items() if (record := parse_record(data)) is not None}

    def _alive(self, driver: str) -> bool:
        """Return whether a driver's last heartbeat is recent by this machine's clock."""
        try:
            beat = self.store.files.modified(f"drivers/{driver}")
        except (FileNotFoundError, StoreError):
            return False
        return time.time() - beat.timestamp() <= EXPIRY_S


def _about(record: dict[str, Any] | None) -> dict[str, Any]:
    """Return the content of a plan.json. An earlier version's is only its labels."""
    return record if record and isinstance(record.get("stages"), dict) else {"stages": record}


def _labels(about: dict[str, Any]) -> dict[str, str] | None:
    """Return the labels of a study by id; None if they are invalid."""
    labels = about["stages"]
    return labels if isinstance(labels, dict) and all(isinstance(each, str) for each in labels.values()) else None


def file_bytes(about: Mapping[str, Any]) -> int:
    """Return the size that a manifest gives for a file; 0 if it gives none."""
    count = about.get("bytes")
    return count if isinstance(count, int) and 0 <= count < 2**63 else 0


def find(text: str, labels: Mapping[str, str], of: str = "a finished stage, as `rayexp ls` lists them") -> str:
    """Return the id in ``labels`` (labels by id) that a text names by an id, a prefix of one, or a label.

    Raises ValueError if it names none, and AmbiguousError if it names several. of: what the labels are, for messages.
    """
    if text in labels:
        return text
    matches = [stage_id for stage_id, label in labels.items() if label == text]
    matches = matches or [stage_id for stage_id in labels if text and stage_id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        meant = did_you_mean(text, [*labels, *labels.values()])
        raise ValueError(f"stage={text!r} should be the id, a prefix of the id, or the label of {of}{meant}")
    shown = [f"  {stage_id}  {labels[stage_id]}" for stage_id in sorted(matches)[:CANDIDATES_SHOWN]]
    more = [f"  and {len(matches) - len(shown)} more"] if len(matches) > len(shown) else []
    raise AmbiguousError("\n".join([f"stage={text!r} fits {len(matches)} stages:", *shown, *more]))
