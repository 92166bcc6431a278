"""Files by name below one root, at any fsspec URL.

Names are literal: no call expands a pattern, so ``[``, ``*`` and ``?`` are ordinary characters. Every call has a time
limit. A transient error (a slow answer, a 500, a reset connection) is retried with growing pauses. A permanent one (a
refusal, a full disk, a missing bucket) raises StoreError with its cause at once. No name leads out of the root. A
reader sees a file whole or not at all, with one exception (see ``create``).
"""

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import fsspec
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from rayexp.errors import PermanentError, first_line
from rayexp.timeouts import NoAnswerError, run_with_timeout

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Within one attempt a filesystem's own client may retry several times.
ATTEMPTS = 7
#: Seconds before the next attempt: from 0.2 to 8, and up to one more so that many workers do not retry at once.
PAUSE = wait_exponential_jitter(initial=0.2, max=8.0, jitter=1.0)
#: Exceptions that answer the question, and are not failures.
_ANSWERS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_HOPELESS = (PermissionError, ValueError, TypeError, AttributeError, ImportError, NotImplementedError)
_HOPELESS += (PermanentError, NoAnswerError)  # the latter because the whole limit has passed
_HOPELESS_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG, errno.EACCES, errno.EPERM}
_HOPELESS_CODES |= {errno.ENOSYS, errno.EOPNOTSUPP}
#: Error codes of ``link`` on filesystems without hard links: exFAT, Azure Files, gcsfuse, some network drives.
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
#: Filesystems without folders, where a name with slashes needs no parent.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci"}
#: Prefix of a local path in fsspec. The rest of such a URL is the literal path.
_LOCAL_PREFIX = re.compile(r"(file|local):(//)?")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
#: Files that are removed concurrently.
REMOVED_AT_ONCE = 16
#: Files that are read in one call. A call has one time limit, and is retried as a whole.
READ_AT_ONCE = 1_000


class StoreError(PermanentError):
    """A store that can't be used, or whose content differs from a manifest."""


class Files:
    """A root folder on an fsspec filesystem. ``timeout_s`` is the time limit of each call."""

    def __init__(self, url: str, timeout_s: float = 600.0) -> None:
        self.url = resolved(url)
        try:
            if os.path.isabs(self.url):  # url_to_fs would read a path with :: as a chain of URLs
                fs, root = fsspec.filesystem("file"), self.url
            else:
                # Other machines write here too, so a cached listing would be wrong.
                fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except Exception as error:  # each filesystem has its own error for a URL that it can't read
            raise StoreError(f"store={url!r} is neither a folder nor an fsspec URL ({first_line(error)})") from error
        self.fs = cast(fsspec.AbstractFileSystem, fs)
        self.root = str(root).rstrip("/")
        self.timeout_s = timeout_s

    @property
    def local(self) -> bool:
        """Return whether the root is a folder on this machine."""
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))

    def read(self, name: str) -> bytes:
        """Read one file. Raises FileNotFoundError."""
        return self._answer(f"read {name}", lambda: cast(bytes, self.fs.cat_file(self._place(name), **self._whole)))

    def read_existing(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read the files that exist, many at a time. Return contents by name."""
        found: dict[str, bytes] = {}
        for first in range(0, len(names), READ_AT_ONCE):
            some = names[first : first + READ_AT_ONCE]
            found |= self._answer(f"read {len(some)} files", partial(self._cat, some))
        return found

    def _cat(self, names: Sequence[str]) -> dict[str, bytes]:
        places = [self._place(name) for name in names]
        found = cast(list[Any], self.fs.cat_ranges(places, None, None, on_error="return", **self._whole))
        for answer in found:
            if isinstance(answer, BaseException) and not isinstance(answer, _ANSWERS):
                raise answer
        return {name: data for name, data in zip(names, found, strict=True) if isinstance(data, bytes)}

    def write(self, name: str, data: bytes) -> None:
        """Write one file atomically: a reader sees either the old one or the new one."""
        whole = partial(_put_whole, fill=lambda part: part.write_bytes(data))
        self._put("write", name, whole, lambda place: self.fs.pipe_file(place, data))

    def create(self, name: str, data: bytes) -> bool:
        """Create a file. Return False if it exists already; of several concurrent writers only one gets True.

        A reader sees the file whole, except on a filesystem without hard links, where it may briefly see a part of it.
        """
        try:
            self._put(
                "create",
                name,
                lambda place: _create(Path(place), data),
                lambda place: self.fs.pipe_file(place, data, mode="create"),
            )
        except FileExistsError:
            # Perhaps this process's own first attempt succeeded, and only its answer was lost.
            return self.read_existing([name]).get(name) == data
        return True

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file of any size to ``name`` atomically: a reader sees either the old one or the new one."""
        whole = partial(_put_whole, fill=partial(shutil.copyfile, local))
        self._put("write", name, whole, lambda place: self.fs.put_file(str(local), place))

    def download(self, name: str, local: Path) -> None:
        """Copy the file ``name`` to a local one. Raises FileNotFoundError."""
        local.parent.mkdir(parents=True, exist_ok=True)
        self._answer(f"read {name}", lambda: self.fs.get_file(self._place(name), str(local)))

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of a folder's direct children; none if there is no such folder."""
        try:
            found = self._answer(f"list {folder}", lambda: self.fs.ls(self._place(folder), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        itself = self._place(folder).strip("/")
        return sorted({PurePosixPath(place).name for place in map(str, found) if place.strip("/") != itself})

    def empty(self) -> bool:
        """Return whether the root is empty or missing."""
        try:
            return not self._answer("list the root", lambda: self.fs.ls(self.root or self.fs.root_marker, detail=False))
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False

    def is_folder(self, name: str) -> bool:
        """Return whether a name is a folder's."""
        return self._answer(f"look at {name}", lambda: bool(self.fs.isdir(self._place(name))))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError."""
        return int(self._answer(f"look at {name}", lambda: self.fs.size(self._place(name))) or 0)

    def bytes_below(self, folder: str) -> int:
        """Return the bytes of all files in a folder and its subfolders; 0 if there is no such folder."""
        try:
            found = self._answer(f"look at {folder}", lambda: self.fs.find(self._place(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return sum(int(about.get("size") or 0) for about in cast(dict[str, Any], found).values())

    def modified(self, name: str) -> datetime:
        """Return when a file was last written, by the clock of the store. Raises FileNotFoundError."""
        stamp = cast(datetime, self._answer(f"look at {name}", lambda: self.fs.modified(self._place(name))))
        return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)

    def move_folder(self, source: str, target: str) -> None:
        """Rename a folder, and replace the folder that has the new name. Local roots only.

        A reader of the new name finds the old folder whole, briefly none, or the new one whole.
        """

        def move() -> None:
            old = f"{self._place(source)}.old"
            shutil.rmtree(old, ignore_errors=True)
            Path(self._place(target)).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                os.rename(self._place(target), old)
            os.rename(self._place(source), self._place(target))
            shutil.rmtree(old, ignore_errors=True)

        self._answer(f"write {target}", move)

    def remove(self, folder: str) -> None:
        """Remove a folder and its content, if it exists."""
        place = self._place(folder)

        def remove() -> None:
            if self.local:
                self.fs.rm(place, recursive=True)
                return
            found = cast(dict[str, Any], self.fs.find(place, withdirs=not self._folderless, detail=True))
            files = [path for path, about in found.items() if about["type"] != "directory"]
            with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
                list(pool.map(self._remove_place, files))
            for path in sorted(found.keys() - set(files), reverse=True):  # the innermost first
                self.fs.rmdir(path)

        with suppress(FileNotFoundError, NotADirectoryError):
            self._answer(f"remove {folder}", remove)

    def remove_file(self, name: str) -> None:
        """Remove a file, if it exists."""
        self._answer(f"remove {name}", lambda: self._remove_place(self._place(name)))

    @property
    def _whole(self) -> dict[str, int]:
        """Return the options that keep s3fs from asking for the size of each small file before it reads it."""
        return {"max_concurrency": 1} if "s3" in _protocols(self.fs) else {}

    @property
    def _folderless(self) -> bool:
        return bool(_OBJECT_STORES & set(_protocols(self.fs)))

    def _remove_place(self, place: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            self.fs.rm_file(place)

    def _put(self, verb: str, name: str, locally: Callable[[str], Any], elsewhere: Callable[[str], Any]) -> None:
        """Write a file, and create its folder. ``elsewhere``: for filesystems that show only complete uploads."""

        def put() -> None:
            place = self._place(name)
            if not self._folderless:
                self.fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            try:
                (locally if self.local else elsewhere)(place)
            except FileNotFoundError as error:
                if self.local:  # another process removed the folder in between
                    raise OSError(errno.EAGAIN, first_line(error)) from error
                raise StoreError(first_line(error)) from error  # no such bucket

        self._answer(f"{verb} {name}", put)

    def _place(self, name: str) -> str:
        """Return the full path of a name. Raises StoreError if it leads out of the root, also through a link."""
        place = f"{self.root}/{inside(name)}"
        if self.local:
            root = os.path.realpath(self.root or "/")
            if os.path.commonpath([root, os.path.realpath(place)]) != root:
                raise StoreError(
                    f"{name!r} leads out of the store {self.url} through a symbolic link; replace the link by a copy"
                )
        return place

    def _answer(self, what: str, ask: Callable[[], T]) -> T:
        """Return the result of ``ask``. Retry transient errors; raise StoreError for others and when the time is up."""

        def warn(state: RetryCallState) -> None:
            error = state.outcome and state.outcome.exception()
            log.warning("the store %s: %s failed (%s); trying again", self.url, what, error and first_line(error))

        again, stop = retry_if_exception(_may_pass), stop_after_attempt(ATTEMPTS)
        attempts = Retrying(retry=again, stop=stop, wait=PAUSE, before_sleep=warn, reraise=True)
        try:
            return attempts(run_with_timeout, self.timeout_s, ask, f"store: {what}")
        except (StoreError, *_ANSWERS):
            raise
        except NoAnswerError:
            raise StoreError(
                f"no answer from the store {self.url} ({what}) within {self.timeout_s:g} s; check the network, or "
                "raise timeout_s"
            ) from None
        except Exception as error:
            cause = f"{type(error).__name__}: {first_line(error)}"
            raise StoreError(f"cannot {what} in the store {self.url} ({cause})") from error


def _may_pass(error: BaseException) -> bool:
    hopeless = isinstance(error, (*_ANSWERS, *_HOPELESS)) or getattr(error, "errno", None) in _HOPELESS_CODES
    return isinstance(error, Exception) and not hopeless


def resolved(url: str) -> str:
    """Return a URL or absolute path that means the same in every process. Relative folders, ``~`` and ``file:`` URLs
    become absolute paths. Raises StoreError if that would be another place than the user meant."""

    def refusal(why: str) -> StoreError:
        return StoreError(f"store={url!r} {why}; give a folder or an fsspec URL")

    if not url or "\0" in url:
        raise refusal("names nothing")
    local = _LOCAL_PREFIX.match(url)
    if "://" in url and not local:
        if ".." in url.split("/"):
            raise refusal("leads upwards, which a URL cannot")
        return url
    path = os.path.expanduser(url[local.end() :] if local else url)
    first = path.split("/")[0]
    if first.startswith("~"):
        raise refusal(f"begins with {first}, which is nobody's home here (./{first} is the folder of that name)")
    if _VARIABLE.fullmatch(first):
        raise refusal(f"begins with {first}, which no shell has filled in (./{first} is the folder of that name)")
    if not os.path.isabs(path) and "runtime_resources" in Path.cwd().parts:
        raise StoreError(
            f"store={url!r} would be in Ray's temporary copy of the working directory, which is removed when the job "
            "ends; give an absolute path or an fsspec URL"
        )
    whole = Path(path)
    return str(whole.resolve() if ".." in whole.parts else whole.absolute())


def inside(name: str) -> str:
    """Return ``name`` unchanged. Raises StoreError if it would lead out of a store or a local folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise StoreError(
            f"{name!r} is not a path below the store; it has to be relative, without .. or a backslash in it"
        )
    return name


def _put_whole(place: str, fill: Callable[[Path], object]) -> None:
    """Fill a temporary file beside ``place``, and rename it when it is complete."""
    part = Path(f"{place}.{secrets.token_hex(4)}.part")
    try:
        fill(part)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _create(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        os.link(part, path)  # unlike a rename, this fails if the name exists
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _create_in_place(path, data)
    finally:
        part.unlink(missing_ok=True)


def _create_in_place(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            path.unlink()
            raise


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
