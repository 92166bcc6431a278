"""Times at which a running stage saves itself: at growing intervals, and at once when its driver is told to end.

The driver asks through the key-value store of Ray's control service. Every process of a cluster reaches it: the trial's
process or a rank of a worker group, on any node. Ray itself ends actors without notice.
"""

import time
from collections.abc import Callable, Iterable

import ray
from ray.experimental import internal_kv

from rayexp.config import RunConfig
from rayexp.store.leases import Lease

#: Seconds until the first checkpoint of an attempt. The interval doubles after each.
FIRST_S = 5.0
#: Least interval, in multiples of the time that the last checkpoint took to write, so that large ones take a twentieth
#: of the time.
TIMES_AS_LONG = 20
#: Seconds between two checks for a request of the driver; a check takes a millisecond.
LOOK_S = 0.2
#: Longest wait of a driver for checkpoints, in seconds. `ray job stop` kills the driver after 3.
PATIENCE_S = 2.0
_NAMESPACE = "rayexp"


class Saving:
    """The schedule of a stage's checkpoints. now: a clock, in seconds."""

    def __init__(self, run_config: RunConfig, now: Callable[[], float] = time.monotonic) -> None:
        self._lease = Lease.parse(run_config.lease) if run_config.lease else None
        self._longest_s = run_config.checkpoint_every_s
        self._interval_s = min(FIRST_S, self._longest_s)
        self._now = now
        self._saved = self._looked = self._began = now()
        self._hasten = False
        self._asked = False

    def hasten(self) -> None:
        """Make the next one due now."""
        self._hasten = True

    def due(self) -> bool:
        """Return whether a checkpoint is to be written now."""
        self._began = self._now()
        return self._hasten or self._is_asked() or self._began - self._saved > self._interval_s

    def done(self) -> None:
        """Record that a checkpoint is written, and tell a driver that waits for it."""
        if self._asked and self._lease is not None:
            internal_kv._internal_kv_put(_saved(self._lease.driver, self._lease.work), b"", namespace=_NAMESPACE)
            self._lease = None  # one requested checkpoint is enough
        self._hasten = self._asked = False
        self._saved = self._now()
        wait_s = max(2 * self._interval_s, TIMES_AS_LONG * (self._saved - self._began))
        self._interval_s = min(wait_s, self._longest_s)

    def _is_asked(self) -> bool:
        if self._lease is not None and self._now() - self._looked >= LOOK_S and ray.is_initialized():
            self._asked = bool(internal_kv._internal_kv_exists(_asked(self._lease.driver), namespace=_NAMESPACE))
            self._looked = self._now()
        return self._asked


def ask_to_save(driver: str, works: Iterable[str], patience_s: float = PATIENCE_S) -> set[str]:
    """Ask the stages that ``driver`` runs under leases on ``works`` to save themselves, and wait for them. Return those
    that did not in time: they may be at a point that can't be saved, or have nothing to save yet."""
    missing = set(works)
    internal_kv._internal_kv_put(_asked(driver), b"", namespace=_NAMESPACE)
    until = time.monotonic() + patience_s
    while missing and time.monotonic() < until:
        time.sleep(0.02)
        missing -= {w for w in missing if internal_kv._internal_kv_exists(_saved(driver, w), namespace=_NAMESPACE)}
    internal_kv._internal_kv_del(_asked(driver), del_by_prefix=True, namespace=_NAMESPACE)
    return missing


def _asked(driver: str) -> bytes:
    return f"save/{driver}".encode()


def _saved(driver: str, work: str) -> bytes:
    return _asked(driver) + f"/{work}".encode()
