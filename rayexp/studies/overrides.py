"""Settings of a study's stages in a user's notation, such as ``grpo.group_size=4,8``, and their application.

A setting is named by the kind of its stage and its name there, as in ``spec.json`` and the results table. One value
replaces that of every stage of the kind. Several values make the setting an axis of the study's grid.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from rayexp.config import explain
from rayexp.errors import none_of, not_among
from rayexp.stages import KINDS, Stage
from rayexp.studies.conditions import Wanted, all_stages, changed

EXAMPLE = "grpo.group_size=16 or pretrain.optimiser.learning_rate=0.001,0.003"


@dataclass(frozen=True)
class Override:
    """A setting of one kind of stage, by dotted name, and its new values."""

    kind: str
    setting: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.setting}"

    @property
    def slug(self) -> str:
        """Return its part of a study's name. It omits the values of an axis, because an axis may grow."""
        if len(self.values) > 1:
            return self.name
        text = "".join(value if isinstance(value, str) else json.dumps(value) for value in self.values)
        return f"{self.name}-{re.sub('[^A-Za-z0-9_.]+', '_', text).strip('_')}"


def parse_overrides(texts: Iterable[str]) -> tuple[Override, ...]:
    """Parse the arguments of ``--set``. Raises ValueError on an invalid text, and on a setting that is given twice."""
    found: dict[str, Override] = {}
    for text in texts:
        override = _parsed(text)
        if override.name in found:
            raise ValueError(f"set has {override.name} twice; give all of its values at once, separated by commas")
        found[override.name] = override
    return tuple(found.values())


def _parsed(text: str) -> Override:
    name, given, values = text.partition("=")
    kind, dot, setting = name.strip().partition(".")
    if not (given and dot and setting and values.strip()):
        raise ValueError(f"set={text!r} should be STAGE.SETTING=VALUE, such as {EXAMPLE}")
    if kind not in KINDS:
        raise ValueError(f"the stage {kind!r} of set={name!r} {none_of(kind, KINDS)}")
    return Override(kind, setting, tuple(_values(values)))


def _values(text: str) -> list[Any]:
    """Return the comma-separated values of a text, as JSON if they are JSON, else as words."""
    try:
        return json.loads(f"[{text}]")
    except ValueError:
        return [_value(word.strip()) for word in text.split(",") if word.strip()]


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def apply_overrides(wanted: Sequence[Wanted], overrides: Sequence[Override]) -> list[Wanted]:
    """Return wanted stages and conditions with every combination of the values. Ancestors are changed likewise.

    Raises ValueError, naming the setting, if no stage has it or a value is invalid.
    """
    stages = all_stages(wanted)
    for override in overrides:
        _require_setting(override, stages)
    values = [[(override, value) for value in override.values] for override in overrides]
    combinations = list(itertools.product(*values))
    return changed(wanted, lambda stages: [stage for each in combinations for stage in _with(stages, each)])


def in_effect(wanted: Sequence[Wanted], overrides: Sequence[Override]) -> list[Override]:
    """Return the overrides that change any wanted stage. An override with the present value changes nothing."""
    before = [stage.id for stage in all_stages(wanted)]
    return [
        override
        for override in overrides
        if len(override.values) > 1 or [each.id for each in all_stages(apply_overrides(wanted, [override]))] != before
    ]


def _require_setting(override: Override, stages: Sequence[Stage]) -> None:
    """Raise ValueError unless a stage or one of its ancestors has the setting."""
    every = {id(each): each for stage in stages for each in stage.lineage}.values()
    kinds = dict.fromkeys(stage.kind for stage in every)
    if override.kind not in kinds:
        raise ValueError(f"the stage {override.kind!r} of set={override.name!r} {none_of(override.kind, kinds)}")
    known: dict[str, None] = {}
    for stage in (each for each in every if each.kind == override.kind):
        known |= dict.fromkeys(f"{override.kind}.{name}" for name in _settings(stage))
        if override.name in known:
            return
    raise ValueError(not_among("set", override.name, known))


def _settings(value: BaseModel, prefix: str = "") -> Iterable[str]:
    """Yield the dotted names of all settings, including those that have settings of their own."""
    for name in type(value).model_fields:
        if name in ("init", "kind"):
            continue
        yield f"{prefix}{name}"
        if isinstance(inner := getattr(value, name), BaseModel):
            yield from _settings(inner, f"{prefix}{name}.")


def _with(stages: Sequence[Stage], changes: Sequence[tuple[Override, Any]]) -> list[Stage]:
    """Return the stages with one value for each override. Stages that share a parent share the changed parent."""
    of_kind: dict[str, list[tuple[Override, Any]]] = {}
    for override, value in changes:
        of_kind.setdefault(override.kind, []).append((override, value))
    made: dict[int, Stage] = {}

    def remade(stage: Stage) -> Stage:
        if id(stage) not in made:
            parent = remade(stage.parent) if stage.parent else None
            here = of_kind.get(stage.kind, [])
            made[id(stage)] = _changed(stage, parent, here) if here or parent is not stage.parent else stage
        return made[id(stage)]

    return [remade(stage) for stage in stages]


def _changed(stage: Stage, parent: Stage | None, changes: Sequence[tuple[Override, Any]]) -> Stage:
    fields: dict[str, Any] = {name: getattr(stage, name) for name in type(stage).model_fields}
    if parent:
        fields["init"] = parent
    for override, value in changes:
        _put(fields, override.setting.split("."), value)
    try:
        return type(stage).model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{stage.kind}.{explain(error)}") from error


def _put(fields: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value at a dotted name, and copy the values on the way there."""
    name, *rest = path
    if rest:
        inner = fields[name] if isinstance(fields[name], dict) else fields[name].model_dump()
        fields[name] = dict(inner)
        _put(fields[name], rest, value)
    else:
        fields[name] = _as_part(fields.get(name), value)


def _as_part(before: Any, value: Any) -> Any:
    """Convert a value for its field. A part, such as a task or reward, may be given by its kind, and a weighted sum of
    parts as in ``answer+0.5*letters``."""
    if isinstance(before, tuple):
        several = _terms(value) if isinstance(value, str) else value
        return tuple(several) if isinstance(several, list) else several
    if isinstance(before, BaseModel) and isinstance(value, str):
        return {"kind": value}
    return value


def _terms(text: str) -> list[Mapping[str, Any]]:
    terms = []
    for term in re.split(r"\+(?=[^+])", text):  # a cell may be called 5+
        weight, times, kind = term.rpartition("*")
        terms.append({"kind": kind.strip()} | ({"weight": _number(weight.strip())} if times else {}))
    return terms


def _number(text: str) -> float | str:
    """Return a text as a number if it is one. Otherwise return the text, which the field then refuses by name."""
    try:
        return float(text)
    except ValueError:
        return text
