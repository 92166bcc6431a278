"""Stages as flat lists of settings, by dotted names along the lineage, and where two of them differ.

The names are those of ``spec.json``: ``kl_beta`` is the stage's own, ``init.optimiser.learning_rate`` its parent's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayexp.spec import Stage, number

#: Where one of two stages has no such setting.
ABSENT = "-"


def own(stage: Stage) -> dict[str, Any]:
    """The settings of a stage without those of its lineage."""
    return _flat(stage.model_dump(mode="json", exclude={"init"}))


def along(stage: Stage) -> dict[str, Any]:
    """The settings of a stage and of all that it is built on."""
    depth = len(stage.lineage) - 1
    return {
        f"{'init.' * (depth - level)}{name}": value
        for level, each in reversed(list(enumerate(stage.lineage)))
        for name, value in own(each).items()
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name and both values of every setting in which two flat lists differ."""
    names = [*one, *(name for name in other if name not in one)]
    pairs = [(name, one.get(name, ABSENT), other.get(name, ABSENT)) for name in names]
    return [(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]


def kind_at(name: str, stage: Stage) -> str:
    """The kind of stage, in a lineage, that a dotted name is a setting of."""
    level = len(stage.lineage) - 1 - name.count("init.")
    return stage.lineage[level].id.partition("-")[0] if level >= 0 else ABSENT


def shown(value: Any) -> str:
    """A value for people."""
    return number(value) if isinstance(value, float) else str(value)


def listed(values: Sequence[Any]) -> str:
    """Distinct values, numbers by size, for people."""

    def order(value: Any) -> tuple[float, str]:
        return (value if isinstance(value, int | float) else math.inf), str(value)

    return ", ".join(dict.fromkeys(map(shown, sorted(values, key=order))))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
