"""Conditions: named variants of the chain of stages. One of them is the control, and the others are compared with it.

A study that decides a disagreement returns conditions in place of stages. Each condition names the objection that it
decides, its source and its prediction. ``reports.objections`` compares it with the control, pairing prompts and seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, TypeAlias, get_args

from rayexp.errors import not_among
from rayexp.stages import Stage

#: Name of the condition that the others are compared with.
CONTROL = "control"
#: An objection's prediction: its condition gains more than the control, as much as the control, or nothing at all.
Prediction: TypeAlias = Literal["more", "same", "nothing"]


@dataclass(frozen=True)
class Condition:
    """A named variant of the chain of stages.

    stages: all its stages, measurements included. objection: the claim that it decides, as a sentence. source: origin
    of the claim. predicts: its gain if the objection is right. k: the gain is in pass@k, which is Q for k = 1.
    """

    name: str
    stages: Sequence[Stage] = field(repr=False)
    objection: str = ""
    source: str = ""
    predicts: Prediction = "more"
    k: int = 1

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set(",=;"):
            raise ValueError(f"the name {self.name!r} of a condition should be a text without , = and ;")
        if self.predicts not in get_args(Prediction):
            refusal = not_among("predicts", self.predicts, get_args(Prediction))
            raise ValueError(f"in the condition {self.name!r} {refusal}")
        if self.k < 1:
            raise ValueError(f"in the condition {self.name!r} k={self.k} should be at least 1")

    @property
    def about(self) -> dict[str, Any]:
        """Return objection, source, prediction and k."""
        return {"objection": self.objection, "source": self.source, "predicts": self.predicts, "k": self.k}

    @cached_property
    def ends(self) -> tuple[Stage, ...]:
        """Return the stages whose models are judged: training stages from which no other stage of it is trained."""
        trained = {stage.id: stage for stage in self.stages if stage.pool != "measure"}
        inner = {stage.parent.id for stage in trained.values() if stage.parent}
        return tuple(stage for stage_id, stage in trained.items() if stage_id not in inner)


Records: TypeAlias = Mapping[str, Mapping[str, Any]]


def records(conditions: Iterable[Condition], before: Records) -> Records:
    """Return conditions as JSON by name, merged with those that were recorded before. A stage whose condition was
    renamed belongs to the new name only."""
    now = {each.name: {**each.about, "ends": [end.id for end in each.ends]} for each in conditions}
    named = {end: name for name, about in now.items() for end in about["ends"]}
    found = {}
    for name in dict.fromkeys([*before, *now]):
        about = now.get(name) or before[name]
        earlier = [end for end in before.get(name, {}).get("ends", ()) if named.get(end, name) == name]
        found[name] = {**about, "ends": list(dict.fromkeys([*earlier, *now.get(name, {}).get("ends", ())]))}
    return found


def recorded(records: Records, stages: Mapping[str, Stage]) -> list[Condition]:
    """Return the conditions of ``records``, with those of their ends that are in ``stages`` (stages by id)."""
    return [
        Condition(name, [stages[end] for end in about["ends"] if end in stages], **_without(about, "ends"))
        for name, about in records.items()
    ]


def _without(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != name}


#: An element of a study.
Wanted: TypeAlias = Stage | Condition


def all_stages(wanted: Iterable[Wanted]) -> list[Stage]:
    """Return all wanted stages, including those of conditions."""
    return [stage for each in wanted for stage in (each.stages if isinstance(each, Condition) else [each])]


def conditions_in(wanted: Iterable[Wanted]) -> list[Condition]:
    """Return the wanted conditions, and merge those of equal name.

    Raises ValueError if two conditions of different names end in the same stage, or if there is no control.
    """
    found: dict[str, Condition] = {}
    for each in wanted:
        if isinstance(each, Condition):
            before = found.get(each.name)
            found[each.name] = replace(each, stages=(*before.stages, *each.stages)) if before else each
    if found and CONTROL not in found:
        raise ValueError(f"none of the conditions ({', '.join(found)}) is named {CONTROL}; add that one")
    ends: dict[str, str] = {}
    for condition in found.values():
        for end in condition.ends:
            if (other := ends.setdefault(end.id, condition.name)) != condition.name:
                raise ValueError(
                    f"the conditions {other} and {condition.name} are the same, because both end in {end.label}; "
                    "leave one out, or change a setting in which they differ"
                )
    return list(found.values())


def changed(wanted: Iterable[Wanted], change: Callable[[list[Stage]], list[Stage]]) -> list[Wanted]:
    """Return wanted stages and conditions after a change of their stages. The stages of each condition are changed by
    themselves, and the other stages together."""
    made: list[Wanted] = []
    for by_itself, several in groupby(wanted, key=lambda each: isinstance(each, Condition)):
        if by_itself:
            made += [replace(each, stages=change(list(each.stages))) for each in several if isinstance(each, Condition)]
        else:
            made += change(all_stages(several))
    return made
