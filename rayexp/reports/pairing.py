"""Pairs of ends of conditions: a chain beside the chain that it is compared with."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rayexp.stages import Stage
from rayexp.stages.settings import Setting, placed


def paired(controls: Sequence[Stage], others: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """Return the pairs of ends of two conditions whose roots agree, among others in seed and OOD ratio.

    A root setting that is constant within each condition but differs between them is what the study varies, so it is
    ignored. A setting that varies within both has to have the same value in both ends of a pair.
    """
    mine, theirs = ([placed(stage) for stage in stages] for stages in (controls, others))
    values = _values(mine), _values(theirs)
    roots = {setting for stage in [*controls, *others] for setting in placed(stage.root)}
    apart = {setting for setting in roots if _single(setting, values[0]) and _single(setting, values[1])}
    apart = {setting for setting in apart if values[0].get(setting) != values[1].get(setting)}
    varying = {setting for setting in values[0] if all(len(of.get(setting, ())) > 1 for of in values)}
    asked = sorted((roots - apart) | varying)

    def key(settings: Mapping[Setting, Any]) -> list[str]:
        return [repr(settings.get(setting)) for setting in asked]

    keys = [list(map(key, each)) for each in (mine, theirs)]
    return [
        (control, other)
        for (control, one), (other, two) in product(
            zip(controls, keys[0], strict=True), zip(others, keys[1], strict=True)
        )
        if one == two
    ]


def _values(stages: Sequence[Mapping[Setting, Any]]) -> dict[Setting, set[str]]:
    found: dict[Setting, set[str]] = {}
    for settings in stages:
        for setting, value in settings.items():
            found.setdefault(setting, set()).add(repr(value))
    return found


def _single(setting: Setting, values: Mapping[Setting, set[str]]) -> bool:
    return len(values.get(setting, ())) <= 1
