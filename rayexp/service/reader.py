"""A store for readers over HTTP: answers are cached for a few seconds, and unknown names are refused."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi import Path as InPath
from rich import filesize

from rayexp.errors import RefusedError, did_you_mean, not_among
from rayexp.service import facts, rows
from rayexp.service.cache import Cache
from rayexp.service.curves import curves
from rayexp.service.live import LiveReports
from rayexp.store.artifacts import Store
from rayexp.store.index import AmbiguousError, StoreIndex

T = TypeVar("T")

#: Name of a study, a stage or a file, which cannot lead into another folder.
Name = Annotated[str, InPath(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$")]
#: Largest number of bytes of a file to send, because it is read into memory.
LARGEST = 256 * 2**20
#: Longest wait for the store, in seconds.
ANSWER_S = 30.0

#: Seconds for which a comparison is cached: it takes seconds to make, and changes only with the results.
COMPARED_S = 3600.0


class MissingError(RefusedError):
    """A request for a page that does not exist."""


class Reader:
    """Facts about a store. Methods raise MissingError if there is no such thing, StoreError if it can't be read."""

    def __init__(self, url: str) -> None:
        self._index, self._cache = StoreIndex(Store(url, timeout_s=ANSWER_S)), Cache()
        self._comparisons = Cache(COMPARED_S)
        self._live = LiveReports(self._index.store.url)

    def close(self) -> None:
        """End the report that is being made, and remove all reports."""
        self._live.close()

    def kept(self, key: str, find: Callable[[], T]) -> T:
        """Return the result of ``find``, perhaps from a few seconds ago."""
        return self._cache(key, find)

    def studies(self) -> dict[str, Any]:
        """Return ``facts.studies``."""
        return self._cache("studies", lambda: facts.studies(self._index))

    def study(self, name: str) -> dict[str, Any]:
        """Return ``facts.study``, and the state of the report that this service makes."""
        self._require_study(name)
        found = self._cache(("study", name), lambda: facts.study(self._index, name))
        return {**found, "live": self._live.about(name)}

    def newest(self, name: str, file: str) -> bytes | None:
        """Return a file of the newest report of a study, ``report/index.html`` or a table; None if there is none yet.
        If stages have finished since, begin to make a newer one."""
        found = self.study(name)
        written = found["report"]["written"]
        if not found["report"]["current"]:
            self._live.ask(name, {each["id"] for each in found["stages"] if each["state"] == "finished"})
            since = datetime.fromisoformat(written) if written else None
            if (content := self._live.file(name, file, since)) is not None:
                return content
        return self.file(f"studies/{name}", file) if written else None

    def rows(self, name: str, wanted: Mapping[str, str], page: int) -> dict[str, Any]:
        """Return ``rows.look`` for the results of a study."""
        return {"name": name, **self._of_results(name, rows.look, wanted, page)}

    def results(self, name: str, wanted: Mapping[str, str], form: str) -> bytes:
        """Return ``rows.file`` for the results of a study."""
        return self._of_results(name, rows.file, wanted, form)

    def comparable(self) -> list[str]:
        """Return the names of the studies that have results."""
        return self._cache("comparable", lambda: self._index.studies(having="results.parquet"))

    def comparisons(self, a: str, b: str, by: str) -> dict[str, Any]:
        """Return ``facts.comparisons`` of two studies, or of the parts of one by a setting."""
        if bool(b) == bool(by):
            raise MissingError(f"{'b and by are both' if b else 'neither b nor by is'} given; give one of them")
        names, known = [a, b] if b else [a], self.comparable()
        if unknown := [name for name in names if name not in known]:
            raise MissingError(not_among("study", unknown[0], known))
        written = tuple(self._index.store.files.modified(f"studies/{name}/results.parquet") for name in names)
        return self._comparisons((a, b, by, written), lambda: self._compared(a, b, by))

    def _compared(self, a: str, b: str, by: str) -> dict[str, Any]:
        from rayexp.reports.compare import Study, compare  # scipy, which no other page needs

        study = Study.of(self._index.store, a)
        try:
            first, *others = study.parts(by) if by else [study, Study.of(self._index.store, b)]
        except ValueError as error:
            raise MissingError(str(error)) from error
        return facts.comparisons(first.by, [compare(first, other) for other in others])

    def _of_results(self, name: str, find: Callable[..., T], *asked: Any) -> T:
        content = self.newest(name, "results.parquet")
        if content is None:
            raise MissingError(f"the study {name} has no results yet")
        try:
            return find(content, *asked)
        except ValueError as error:
            raise MissingError(str(error)) from error

    def stages(self, study: str, kind: str) -> dict[str, Any]:
        """Return ``facts.stages``. study: all if it is empty."""
        if study:
            self._require_study(study)
        return self._cache(("stages", study, kind), lambda: facts.stages(self._index, study, kind))

    def stage(self, name: str) -> dict[str, Any]:
        """Return ``facts.stage``."""
        return self._of_stage("stage", facts.stage, name)

    def alike(self, name: str) -> list[dict[str, str]]:
        """Return ``facts.alike``."""
        return self._of_stage("alike", facts.alike, name)

    def differences(self, name: str, other: str) -> dict[str, Any]:
        """Return ``facts.differences``."""
        return self._of_stage("differences", facts.differences, name, other)

    def curves(self, name: str) -> dict[str, Any]:
        """Return the curves of a stage; none if it has no metrics."""
        found = self.stage(name)
        if found["metrics"] is None:
            return {"id": found["id"], "problem": None, "curves": []}
        return self._of_stage("curves", curves, found["id"])

    def file(self, folder: str, name: str) -> bytes:
        """Return a file, unless it is too large."""
        files = self._index.store.files
        try:
            if (size := files.size(f"{folder}/{name}")) > LARGEST:
                raise MissingError(
                    f"{name} is too large to be sent ({filesize.decimal(size)}); copy it from {files.url}/{folder}"
                )
            return files.read(f"{folder}/{name}")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise MissingError(f"there is no {name} in {folder} yet") from error

    def _of_stage(self, what: str, find: Callable[..., T], *names: str) -> T:
        """Return the result of ``find`` for the named stages, perhaps from the cache."""
        try:
            return self._cache((what, *names), lambda: find(self._index, *names))
        except (ValueError, AmbiguousError) as error:
            raise MissingError(str(error)) from error

    def _require_study(self, name: str) -> None:
        if name not in (known := self._index.studies()):
            others = ", ".join(known) or "none"
            raise MissingError(f"there is no study {name!r} among those here: {others}{did_you_mean(name, known)}")


def _reader(request: Request) -> Reader:
    return request.app.state.reader


#: The reader of the application that a request has come to.
ReaderOf = Annotated[Reader, Depends(_reader)]
