"""Conditions: named ways of going through the chain, one of which is the control that each of the others is held to.

A study that asks who is right in a disagreement returns conditions in place of stages. Each says whose objection it
decides and what that predicts; ``reports.objections`` compares it with the control, prompt by prompt and seed by seed.
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
#: An objection predicts that its condition gains more than the control, as much as it, or nothing at all.
Prediction: TypeAlias = Literal["more", "same", "nothing"]


@dataclass(frozen=True)
class Condition:
    """A named way of going through the chain.

    stages: all that it wants, measurements included. objection: the claim that it decides, a sentence; source: who
    makes it. predicts: what the gain is to be if the objection is right. k: it is about pass@k; that of 1 is Q.
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
        """Return what it says of itself besides its name."""
        return {"objection": self.objection, "source": self.source, "predicts": self.predicts, "k": self.k}

    @cached_property
    def ends(self) -> tuple[Stage, ...]:
        """Return the stages whose models it is judged by: those that nothing else of it is trained from."""
        trained = {stage.id: stage for stage in self.stages if stage.pool != "measure"}
        inner = {stage.parent.id for stage in trained.values() if stage.parent}
        return tuple(stage for stage_id, stage in trained.items() if stage_id not in inner)


Records: TypeAlias = Mapping[str, Mapping[str, Any]]


def records(conditions: Iterable[Condition], before: Records) -> Records:
    """Return conditions as JSON, by name, with those that were recorded before; a stage that had another name then has
    that of now."""
    now = {each.name: {**each.about, "ends": [end.id for end in each.ends]} for each in conditions}
    named = {end: name for name, about in now.items() for end in about["ends"]}
    found = {}
    for name in dict.fromkeys([*before, *now]):
        about = now.get(name) or before[name]
        earlier = [end for end in before.get(name, {}).get("ends", ()) if named.get(end, name) == name]
        found[name] = {**about, "ends": list(dict.fromkeys([*earlier, *now.get(name, {}).get("ends", ())]))}
    return found


def recorded(records: Records, stages: Mapping[str, Stage]) -> list[Condition]:
    """Return the conditions of ``records``, with those of their ends that are among the stages, which go by id."""
    return [
        Condition(name, [stages[end] for end in about["ends"] if end in stages], **_without(about, "ends"))
        for name, about in records.items()
    ]


def _without(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != name}


#: All that a study may consist of.
Wanted: TypeAlias = Stage | Condition


def all_stages(wanted: Iterable[Wanted]) -> list[Stage]:
    """Return the stages that are wanted, those of conditions among them."""
    return [stage for each in wanted for stage in (each.stages if isinstance(each, Condition) else [each])]


def conditions_in(wanted: Iterable[Wanted]) -> list[Condition]:
    """Return the conditions that are wanted, those of one name as one.

    Raises ValueError where two of different names end in the same stage, and where there is no control.
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
    """Return what is wanted with its stages changed: those of a condition by themselves, and the others together."""
    made: list[Wanted] = []
    for by_itself, several in groupby(wanted, key=lambda each: isinstance(each, Condition)):
        if by_itself:
            made += [replace(each, stages=change(list(each.stages))) for each in several if isinstance(each, Condition)]
        else:
            made += change(all_stages(several))
    return made
