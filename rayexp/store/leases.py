"""Leases, with which several drivers that share a store divide the work.

A lease is a file ``leases/<work>.<number>`` whose content names its driver. The protocol:

1. Acquire: create the file with the next number. Files are created exclusively, so one of two drivers gets a number.
2. Heartbeat: a living driver rewrites ``drivers/<driver>`` every BEAT_S seconds.
3. Expiry: a lease is dead if its driver's heartbeat file is gone, if this machine sees that the driver's process has
   ended, or if another driver has watched for EXPIRY_S without a new beat. It measures with its own clock, so clocks
   need not agree. A store that shows files late only delays a takeover.
4. Fencing: a process that works under a lease checks before each write that the newest number is its own. A process
   that outlives its driver therefore stops at its next write.
"""

import json
import logging
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rayexp.errors import PermanentError
from rayexp.store.filesystem import Files, StoreError

log = logging.getLogger(__name__)

BEAT_S = 5.0
#: Longer than a few beats and the delay of a store's caches (file attributes, a bucket's listing) together.
EXPIRY_S = 60.0
#: A driver is dead at once, without watching, if its last beat is so much older than one's own by the store's clock.
LONG_GONE_S = 600.0
#: Pause between two looks at a lease that another driver holds.
SECONDS_BETWEEN_LOOKS = 0.2
#: The end of messages that refuse a store that is not shared.
SHARED = "use a folder or a bucket that every machine reaches"
#: A driver's name. A lease with any other content is still being written.
_DRIVER = re.compile(r".*-\d+-[0-9a-f]{8}", re.DOTALL)


class LeaseLostError(PermanentError):
    """A lease that another driver has taken over, or that its own driver has given back."""


class NotSharedError(PermanentError):
    """A process whose store is a folder of its own machine, and not its driver's store of the same address."""


@dataclass(frozen=True)
class Lease:
    """The right of one driver to compute ``work``. It travels as text to the processes that compute it."""

    work: str
    number: int
    driver: str

    def __str__(self) -> str:
        return json.dumps([self.work, self.number, self.driver])

    @classmethod
    def parse(cls, text: str) -> "Lease":
        work, number, driver = json.loads(text)
        return cls(work, number, driver)

    @property
    def name(self) -> str:
        return f"leases/{self.work}.{self.number:06d}"

    def require_shared(self, files: Files) -> None:
        """Raise NotSharedError or LeaseLostError unless this process can read the lease that its driver wrote.

        It reads by name, without a listing: a name that was never looked up is in no cache of a network drive.
        """
        if files.read_existing([self.name]).get(self.name) != self.driver.encode():
            raise self._lost(files, newest(files, self.work))

    def require_held(self, files: Files) -> None:
        """Raise LeaseLostError or NotSharedError unless this lease still exists and is the newest on its work."""
        holder = newest(files, self.work)
        if holder != self:
            raise self._lost(files, holder)

    def _lost(self, files: Files, holder: "Lease | None") -> PermanentError:
        """Return the error for this lease: lost to ``holder``, given back, or written in another store."""
        heart = f"drivers/{self.driver}"
        if holder is None and not files.read_existing([heart]):
            return NotSharedError(
                f"store={files.url!r} on {platform.node()} is not that of the driver {self.driver}: no driver holds "
                f"{self.work} there; {SHARED}"
            )
        why = f"the driver {holder.driver} holds it now" if holder else "its sweep, or the trial, has ended"
        return LeaseLostError(f"the driver {self.driver} has lost its lease on {self.work}: {why}")


def newest(files: Files, work: str) -> Lease | None:
    """Return the lease with the highest number on ``work``, alive or dead."""
    numbers = [int(number) for name, _, number in _parts(files) if name == work]
    if not numbers:
        return None
    lease = Lease(work, max(numbers), "")
    content = files.read_existing([lease.name]).get(lease.name)
    return None if content is None else Lease(work, lease.number, content.decode(errors="replace"))


def on_record(files: Files) -> list[Lease]:
    """Return all leases in a store, alive or dead."""
    names = {Lease(work, int(number), "").name: (work, int(number)) for work, _, number in _parts(files)}
    found = files.read_existing(list(names))
    return [Lease(*names[name], content.decode(errors="replace")) for name, content in found.items()]


def abandoned(files: Files, now: datetime) -> dict[str, bytes]:
    """Return the contents of leases and heartbeats of dead drivers, by name. now: time by the clock of the store.

    A driver is dead when this machine sees that its process has ended, or when it was silent for LONG_GONE_S. Leases
    are read before heartbeats, because a driver writes a heartbeat before it takes its first lease.
    """
    leases = [lease for lease in on_record(files) if _DRIVER.fullmatch(lease.driver)]
    hearts = files.read_existing([f"drivers/{driver}" for driver in files.names("drivers")])
    silent = {name: content for name, content in hearts.items() if _silent(files, name, content, now)}
    living = {name.removeprefix("drivers/") for name in hearts.keys() - silent.keys()}
    return {lease.name: lease.driver.encode() for lease in leases if lease.driver not in living} | silent


def _silent(files: Files, heart: str, beat: bytes, now: datetime) -> bool:
    if has_ended(beat.decode(errors="replace").partition(" ")[2]):
        return True
    try:
        return (now - files.modified(heart)).total_seconds() > LONG_GONE_S
    except FileNotFoundError:  # its driver has just ended
        return True


@contextmanager
def held(files: Files, work: str, doing: str) -> Iterator[Lease]:
    """Wait until no other driver has a lease on ``work``, and hold one for the block. doing: what the other driver does
    meanwhile, for the line that is printed while this one waits."""
    with Leases(files) as leases:
        waiting = False
        while (lease := leases.take(work)) is None:
            if not waiting:
                print(f"waiting for another driver ({leases.holder(work)}), which {doing}", file=sys.stderr, flush=True)
            waiting = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        yield lease


def _parts(files: Files) -> list[tuple[str, str, str]]:
    parts = [name.rpartition(".") for name in files.names("leases")]
    return [part for part in parts if part[2].isdigit()]


class Leases:
    """The leases of this driver, for as long as the ``with`` block lasts."""

    def __init__(
        self,
        files: Files,
        beat_s: float = BEAT_S,
        expiry_s: float = EXPIRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        host = re.sub(r"[^\w.-]", "-", platform.node())  # part of a file's name
        self.driver = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self._files = files
        self._beat_s = beat_s
        self._expiry_s = expiry_s
        self._clock = clock
        self._beats = 0
        self._seen: dict[str, tuple[bytes, float]] = {}  # by file: its content, and since when it is unchanged
        self._held: dict[str, Lease] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="lease heartbeat")

    def __enter__(self) -> Self:
        self.beat()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._heart.join(timeout=self._beat_s)
        try:
            for work in list(self._held):
                self.release(work)
            self._files.remove_file(f"drivers/{self.driver}")
        except StoreError as problem:  # the leases expire by themselves
            log.warning("cannot release leases (they expire after %g s): %s", self._expiry_s, problem)

    def take(self, work: str) -> Lease | None:
        """Take a lease on ``work``. Return None while another driver's is alive."""
        before = newest(self._files, work)
        if before is not None and not (self._dead(before) and newest(self._files, work) == before):
            return None  # the second look is needed because the driver may have released it and ended in between
        lease = Lease(work, before.number + 1 if before else 1, self.driver)
        if not self._files.create(lease.name, self.driver.encode()):
            return None
        if before is not None:
            log.warning("taking over %s, because its driver %s has ended or is silent", work, before.driver)
            self._files.remove_file(before.name)
        self._held[work] = lease
        return lease

    def holder(self, work: str) -> str | None:
        """Return the driver of the newest lease on ``work``; None if there is no lease."""
        lease = newest(self._files, work)
        return lease.driver if lease else None

    def release(self, work: str) -> None:
        """Give a lease back."""
        if lease := self._held.pop(work, None):
            self._files.remove_file(lease.name)

    def beat(self) -> None:
        """Write a new heartbeat of this driver."""
        self._beats += 1
        self._files.write(f"drivers/{self.driver}", f"{self._beats} {process_identity(os.getpid())}".encode())

    def _dead(self, lease: Lease) -> bool:
        """Return whether a lease's driver has ended or been silent too long. If so, remove its heartbeat."""
        if not _DRIVER.fullmatch(lease.driver):
            return self._unchanged(lease.name, lease.driver.encode())
        heart = f"drivers/{lease.driver}"
        beat = self._files.read_existing([heart]).get(heart)
        if beat is None:
            return True
        ended = has_ended(beat.decode(errors="replace").partition(" ")[2])
        if not ended and not self._unchanged(heart, beat) and not self._long_gone(heart):
            return False
        self._files.remove_file(heart)
        return True

    def _unchanged(self, name: str, content: bytes) -> bool:
        """Return whether this driver has seen a file with this content for longer than the expiry."""
        now = self._clock()
        before, since = self._seen.get(name, (content, now))
        self._seen[name] = (content, since if content == before else now)
        return now - self._seen[name][1] > self._expiry_s

    def _long_gone(self, heart: str) -> bool:
        try:
            silent = self._files.modified(f"drivers/{self.driver}") - self._files.modified(heart)
        except FileNotFoundError:  # just removed; the next look decides
            return False
        return silent.total_seconds() > LONG_GONE_S

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                self.beat()
            except StoreError as error:
                log.warning("the lease heartbeat failed: %s", error)


def process_identity(pid: int) -> str:
    """Return a text that identifies a process among those of all machines: boot, PID namespace, PID, and start time.

    Empty for a process that has ended, and on a system without /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()  # behind the program's name, which may have any characters
    return "" if state in "ZX" else f"{boot} {namespace} {pid} {fields[18]}"


def has_ended(identity: str) -> bool:
    """Return whether a process ran on this machine and has ended. False for a process of another machine."""
    mine, theirs = process_identity(os.getpid()).split(), identity.split()
    if not len(mine) == len(theirs) == 4 or mine[:2] != theirs[:2]:
        return False
    pid = int(theirs[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another account's process, which /proc may hide
        return False
    return process_identity(pid) != identity
