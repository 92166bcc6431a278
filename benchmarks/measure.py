"""Measuring side by side: A B A B ..., so that what else the machine does befalls both sides alike.

Numbers of two runs are not comparable; ratios within one are. On the CPU the clock counts this process's own seconds of
computing: everything here is one thread, and a machine that others use would otherwise be timed as well.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}


@dataclass(frozen=True)
class Samples:
    """Seconds that one side took, round by round. A ratio to a peer is judged by the median, an absolute target by the
    best round, which is the one that was disturbed least."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def faster_than(self, peer: "Samples") -> float:
        """Return the speed as a multiple of the peer's: the median of each round's ratio, so that drift cancels."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, peer.seconds, strict=True))

    def rate(self, work: float, unit: str) -> str:
        """``work`` done in each round, as a rate for people."""
        return f"{work / self.median:,.0f} {unit}/s ±{self.spread:.0%}"

    def time(self) -> str:
        """The time of a round, for people."""
        return f"{self.median * 1e3:,.1f} ms ±{self.spread:.0%}"


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, Samples]:
    """Time all sides in turn, ``rounds`` times, after one untimed turn each.

    A side ends when its work is done. One that returns a float has timed itself, without what only a benchmark repeats.
    """
    clock = CLOCKS[device]
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = clock()
            own = side()
            seconds[name].append(own if isinstance(own, float) else clock() - started)
    return {name: Samples(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True)
class Row:
    """One line of the table. met: whether the target was reached; None where there is none."""

    case: str
    ours: str
    peer: str = ""
    ratio: str = ""
    target: str = ""
    met: bool | None = None


def publish(rows: Sequence[Row]) -> None:
    """Hand the rows of a benchmark to the process that prints the table: one line of JSON, the last of the output."""
    print(json.dumps([dataclasses.asdict(row) for row in rows]), flush=True)
