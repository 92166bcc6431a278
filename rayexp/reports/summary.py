"""Results of a measurement and verdicts of a study, as a few named values for a tracker."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rayexp.reports.table import PASS_AT, measured, with_pass_at_k
from rayexp.stages import Stage
from rayexp.store.artifacts import Store

#: Columns of results whose means a tracker gets.
TOLD = ("q", "greedy_correct", *(f"pass_at_{k}" for k in PASS_AT))
#: What the verdicts of each file of a report are about.
ABOUT = {"claims.csv": "{claim} {title} | {setting}", "objections.csv": "{condition} | {place}"}


class Verdict(NamedTuple):
    """A verdict of a study, with its claim and setting, and the measurement behind it."""

    about: str
    measured: str
    verdict: str


def results_of(store: Store, measurement: Stage) -> dict[str, float]:
    """Return means over the prompts of each role, and of each of its cells, by names such as ``evaluate/ood/q`` and
    ``evaluate/ood/TS/pass_at_64``; without those that are not known. Raises StoreError as ``table.measured`` does."""
    frame = with_pass_at_k(measured(store, measurement.id))
    values = frame[list(TOLD)].astype(float)
    places = (frame["role"], frame["role"] + "/" + frame["cell"])
    means = pd.concat([values.groupby(place).mean().stack() for place in places]).dropna()
    means.index = means.index.map("/".join)
    return {f"{measurement.kind}/{name}": mean for name, mean in means.to_dict().items()}


def verdicts(folder: Path) -> Iterator[Verdict]:
    """Yield the verdicts of the report in a folder."""
    for name, about in ABOUT.items():
        if (folder / name).exists():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    yield Verdict(about.format_map(row), row["measured"], row["verdict"])
