"""Stages as flat lists of settings, by dotted names along the lineage, and the settings in which two of them differ.

The names are those of ``spec.json``: ``kl_beta`` is the stage's own, ``init.optimiser.learning_rate`` its parent's.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from rayexp.config import canonical_json
from rayexp.formatting import number
from rayexp.stages import Stage

#: Text for a setting that a stage does not have, or that is empty.
ABSENT = "-"
#: The setting that stands for a task with a name, because its other settings are too long to show.
TASK_NAME = "task.name"
#: Settings that are shown even if they do not vary, with their default, which is never shown. Results are grouped by
#: the role of prompts; without these settings a reader would take that role for the role of all prompts.
UNSAID = {"mixture": ABSENT, "curriculum": ABSENT}


def own(stage: Stage) -> dict[str, Any]:
    """Return the settings of a stage without those of its lineage."""
    return _flat(stage.model_dump(mode="json", exclude={"init"}))


def along(stage: Stage) -> dict[str, Any]:
    """Return the settings of a stage and of all that it is built on."""
    depth = len(stage.lineage) - 1
    return {
        f"{'init.' * (depth - level)}{name}": value
        for level, each in reversed(list(enumerate(stage.lineage)))
        for name, value in own(each).items()
    }


#: A stage of a lineage, such as ``grpo`` or, where it is the second of its kind, ``grpo 2``; a dotted name.
Setting = tuple[str, str]


def varying(stages: Iterable[Stage]) -> dict[Setting, str]:
    """Return the settings by which chains of a study differ, with names for people. Settings by which results are
    grouped anyway are left out: OOD ratio, seed, and the prompts and beta of a GRPO stage.

    Seeds of later stages are returned only if one seed of pretraining has several of them. A setting of ``UNSAID`` is
    also returned if all chains have the same value, unless that is its default. If all tasks have distinct names,
    ``task.name`` is the only setting of tasks that is returned.
    """
    values: dict[tuple[Setting, int | None], set[str]] = {}
    stages = list(stages)
    named = _named(stage.root for stage in stages)
    for stage in stages:
        for setting, value in _conditions(stage).items():
            if named and setting[1].startswith("task.") and setting[1] != TASK_NAME:
                continue
            of = stage.chain_seed if setting[1] == "seed" else None
            values.setdefault((setting, of), set()).add(value)
    every = {setting for setting, _ in values}
    return {
        setting: _titled(setting, every)
        for (setting, _), found in values.items()
        if len(found) > 1 or not found <= {UNSAID.get(setting[1], *found)}
    }


def _named(roots: Iterable[Stage]) -> bool:
    """Return whether every task has a name that no other one has."""
    tasks = {canonical_json(root.model_dump(mode="json", include={"task"})) for root in roots}
    names = [json.loads(task)["task"].get("name") for task in tasks]
    return None not in names and len(set(names)) == len(names)


def condition(stage: Stage, among: Mapping[Setting, str]) -> str:
    """Return the ``varying`` settings of a stage and of what it is built on, with their values, as text for people."""
    return ", ".join(f"{among[name]} = {value}" for name, value in _conditions(stage).items() if name in among)


def varied(stage: Stage, among: Collection[Setting]) -> dict[str, Any]:
    """Return the values of the ``varying`` settings of a stage and of what it is built on, by column, such as
    ``grpo.group_size``. Numbers, booleans and strings stay as they are; anything else becomes its text for people."""
    return {column(setting): plain(value) for setting, value in placed(stage).items() if setting in among}


def placed(stage: Stage) -> dict[Setting, Any]:
    """Return the settings of a stage and of all that it is built on, each with its stage's place in the lineage."""
    return {(place, name): value for place, each in _places(stage) for name, value in own(each).items()}


def column(setting: Setting) -> str:
    """Return the one word for a setting: ``grpo.group_size``, ``grpo2.kl_beta``."""
    place, name = setting
    return f"{place.replace(' ', '')}.{name}"


def plain(value: Any) -> Any:
    """Return a number, boolean or string as it is, anything else as its text for people."""
    return value if value is None or isinstance(value, bool | int | float | str) else shown(value)


def condition_names(stages: Iterable[Stage], names: Mapping[str, str]) -> dict[str, str]:
    """Return the condition of each stage for people, by id: its name in ``names``, if it has one, then the settings by
    which stages of that name differ. So stages that differ in any setting have different texts."""
    of_name: dict[str, list[Stage]] = {}
    for stage in stages:
        of_name.setdefault(names.get(stage.id, ""), []).append(stage)
    every = {setting for of in of_name.values() for stage in of for setting in _conditions(stage)}
    found = {}
    for name, of in of_name.items():
        varies = {setting: _titled(setting, every) for setting in varying(of)}
        found |= {stage.id: ", ".join(filter(None, [name, condition(stage, varies)])) for stage in of}
    return found


def within(part: str, whole: str) -> bool:
    """Return whether a stage of the condition ``whole`` may be built on one of the condition ``part``."""
    return not part or set(part.split(", ")) <= set(whole.split(", "))


def _conditions(stage: Stage) -> dict[Setting, str]:
    """Return the settings along the lineage as text, without those by which results are grouped, and the kinds of its
    stages as ``chain``."""
    found: dict[Setting, str] = {}
    seeded = next((each for each in stage.lineage if hasattr(each, "seed")), None)
    for place, each in _places(stage):
        grouped = {"kind"} | ({"seed"} if each is seeded else set())
        grouped |= {"ood_ratio"} if each is stage.root else {"prompt_role", "kl_beta"} if each is stage else set()
        for name, value in own(each).items():
            if name not in grouped:
                found[place, name] = shown(value)
    return {**found, (stage.kind, "chain"): "/".join(each.kind for each in stage.lineage)}


def _places(stage: Stage) -> Iterator[tuple[str, Stage]]:
    """Yield the stages of a lineage, each with its kind and, from the second of its kind on, its number."""
    counts: dict[str, int] = {}
    for each in stage.lineage:
        counts[each.kind] = nth = counts.get(each.kind, 0) + 1
        yield each.kind if nth == 1 else f"{each.kind} {nth}", each


def _titled(setting: Setting, among: Collection[Setting]) -> str:
    """Return the shortest name that no other setting has."""
    stage, name = setting
    last = name.rpartition(".")[2]
    same = [place for place, other in among if other.rpartition(".")[2] == last]
    if len(same) == 1 and last not in ("seed", "chain"):
        return last
    return f"{stage} {last if same.count(stage) == 1 else name}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return name and both values of every setting in which two flat lists differ."""
    names = [*one, *(name for name in other if name not in one)]
    pairs = [(name, one.get(name, ABSENT), other.get(name, ABSENT)) for name in names]
    return [(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]


def kind_at(name: str, stage: Stage) -> str:
    """Return the kind of the stage, in a lineage, that a dotted name is a setting of."""
    level = len(stage.lineage) - 1 - name.count("init.")
    return stage.lineage[level].kind if level >= 0 else ABSENT


def shown(value: Any) -> str:
    """Return the text of a value for people. A list of parts, such as rewards, becomes a sum: ``answer + 0.5
    letters``."""
    match value:
        case None | []:
            return ABSENT
        case float():
            return number(value)
        case list():
            return " + ".join(map(shown, value))
        case {"kind": kind, **settings}:
            weight = settings.pop("weight", 1.0)
            inside = ", ".join(f"{name} {shown(each)}" for name, each in settings.items())
            return f"{'' if weight == 1 else f'{number(weight)} '}{kind}{f' ({inside})' if inside else ''}"
    return str(value)


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values whose texts differ, sorted: numbers by size, then all else by its text."""

    def order(value: Any) -> tuple[float, str]:
        return (value if isinstance(value, int | float) else math.inf), str(value)

    return list({shown(value): value for value in sorted(values, key=order)}.values())


def listed(values: Iterable[Any]) -> str:
    """Return the distinct values as text for people."""
    return ", ".join(map(shown, distinct(values)))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
