"""Measurement of two sides in turn: A B A B ..., so that other load on the machine affects both sides alike.

Times of two runs are not comparable; ratios within one run are. On the CPU the clock counts this process's own CPU
seconds, because everything here is one thread, and other users' load would otherwise be timed as well.
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
    """Seconds of one side, by round. A ratio to a peer is judged by the median. An absolute target is judged by the
    best round, because it was disturbed least."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Return the interquartile range over the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def faster_than(self, peer: "Samples") -> float:
        """Return the speed as a multiple of the peer's: the median of each round's ratio, so that drift cancels."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, peer.seconds, strict=True))

    def rate(self, work: float, unit: str) -> str:
        """Return the rate of ``work`` done in each round, as text."""
        return f"{work / self.median:,.0f} {unit}/s ±{self.spread:.0%}"

    def time(self) -> str:
        """Return the time of a round, as text."""
        return f"{self.median * 1e3:,.1f} ms ±{self.spread:.0%}"


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, Samples]:
    """Time all sides in turn, ``rounds`` times, after one untimed turn each.

    A side returns when its work is done. If it returns a float, it has timed itself, to exclude its own set-up.
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
    """One line of the table. met: whether the target was reached; None if there is no target."""

    case: str
    ours: str
    peer: str = ""
    ratio: str = ""
    target: str = ""
    met: bool | None = None


def publish(rows: Sequence[Row]) -> None:
    """Print the rows of a benchmark as JSON, in the last line of output, for the process that prints the table."""
    print(json.dumps([dataclasses.asdict(row) for row in rows]), flush=True)
