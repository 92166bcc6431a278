"""A study in a store: all stages that were ever asked for under its name, by any number of drivers.

``studies/<name>/plan.json`` has the labels of all its stages by id, and what they have in common: ``study``, ``scale``,
``axes`` (the settings that were given several values), ``settings`` (the values of all settings outside of the grid),
``conditions`` by name, if the study has any, and ``looks``, if there are several.
A driver adds its stages when it begins, and writes the page of the whole study when it ends, both under a lease. So the
last driver to end writes the rows of all.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from rayexp.errors import RefusedError
from rayexp.parts import unread_parts
from rayexp.stages import Stage, settings
from rayexp.store.artifacts import Store
from rayexp.store.index import STUDY_LEASE, StoreIndex
from rayexp.store.leases import held
from rayexp.studies import conditions
from rayexp.sweep.plan import Plan

T = TypeVar("T")

#: Fields in which the stages of one study may always differ.
GRID = ("kind", "kl_beta", "ood_ratio", "seed")
ANOTHER = "give this one another name by --name"


@dataclass(frozen=True)
class Study:
    """A name in a store, with its study and scale. axes: settings with several values, such as ``grpo.group_size``, in
    which new stages may differ from those that the study has."""

    store: Store
    name: str
    study: str
    scale: str
    axes: frozenset[str] = frozenset()

    def labels(self) -> dict[str, str]:
        """Return the labels, by id, of all stages that were ever asked for; none if it is new."""
        index = StoreIndex(self.store)
        return index.study(self.name) if "plan.json" in self.store.files.names(f"studies/{self.name}") else {}

    def require_one(self, plan: Plan) -> None:
        """Raise RefusedError if the name is taken by another study, scale, or set of settings than the plan's."""
        labels = self.labels()
        if not labels:
            return
        about = StoreIndex(self.store).about(self.name)
        study, scale = about.get("study", self.study), about.get("scale", self.scale)
        if (study, scale) != (self.study, self.scale):
            raise RefusedError(f"study name {self.name!r} is taken by the study {study} at scale {scale}; {ANOTHER}")
        axes = self.axes.union(about.get("axes", ()))
        for setting, values in asked_for(plan).items():
            if setting.rpartition(": ")[2] in axes:
                continue
            before = self._settings(about).get(setting, values)
            if before != values if "settings" in about else any(value not in values for value in before):
                raise RefusedError(
                    f"study name {self.name!r} is taken by stages with {setting}={settings.listed(before)}, and this "
                    f"plan has {settings.listed(values)}; {ANOTHER}"
                )

    def add(self, plan: Plan) -> None:
        """Make the stages of a plan part of the study."""
        with self._alone() as store:
            self._merge(plan, store)

    def write(self, plan: Plan, make: Callable[[Plan, Store, Path], T]) -> T:
        """Make the stages of a plan part of the study. Let ``make`` write the report of the whole, as the store has it
        now, into a local folder, and replace that in the store. Return what ``make`` returns."""
        with self._alone() as store, TemporaryDirectory() as folder:
            labels = self._merge(plan, store)
            snapshot = replace(self, store=store.snapshot(labels))
            made = make(snapshot.whole(plan, labels), snapshot.store, Path(folder))
            store.replace_study(Path(folder), self.name)
            store.write_summaries(self.name, StoreIndex(snapshot.store).summaries(labels).values())
        return made

    def whole(self, plan: Plan, labels: Mapping[str, str]) -> Plan:
        """Return the plan of all stages that were ever asked for, and which of them are finished now.

        Stages that this plan lacks are read from the store. Stages of an earlier version have other ids today, and are
        left out.
        """
        here = {stage.id: stage for stage in plan.stages}
        finished = self.store.finished_ids(labels)
        earlier = self._earlier(labels, here, finished)
        known = {stage_id: stage for stage_id in labels if (stage := here.get(stage_id) or earlier.get(stage_id))}
        named = conditions.recorded(self._conditions(plan), known)
        unread = [i for i in labels if i not in finished | here.keys()]
        return Plan.of(plan.study, [*known.values(), *named], finished, unread, self._looks(plan))

    def addition(self, plan: Plan) -> str:
        """Say what the store has of the study, and what a plan adds; nothing if the study is new or as planned."""
        labels, planned = self.labels(), {stage.id for stage in plan.stages}
        if not labels or labels.keys() == planned:
            return ""
        finished = (plan.finished & labels.keys()) | self.store.finished_ids(labels.keys() - planned)
        return (
            f"study {self.name}: {len(labels)} stages so far ({len(finished)} finished); this plan adds "
            f"{len(planned - labels.keys())}; the report covers all of them, including "
            f"{len(labels.keys() - planned)} outside of this plan"
        )

    def _settings(self, about: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the settings of the study; if an earlier version recorded none, those of its finished stages."""
        found = about.get("settings")
        return found if isinstance(found, dict) else varied(self._earlier(about["stages"], ()).values())

    def _conditions(self, plan: Plan) -> conditions.Records:
        """Return the conditions of a plan, and those that were ever asked for."""
        before = StoreIndex(self.store).about(self.name).get("conditions", {}) if self.labels() else {}
        return conditions.records(plan.conditions, before)

    def _looks(self, plan: Plan) -> int:
        before = StoreIndex(self.store).about(self.name).get("looks", 1) if self.labels() else 1
        return max(before, plan.looks)

    def _earlier(
        self, labels: Mapping[str, str], here: Iterable[str], finished: Iterable[str] | None = None
    ) -> dict[str, Stage]:
        finished = self.store.finished_ids(labels) if finished is None else finished
        ids = [stage_id for stage_id in labels if stage_id in set(finished) - set(here)]
        return {
            stage_id: stage
            for stage_id, stage in StoreIndex(self.store).specs(ids).items()
            if stage.id == stage_id and not unread_parts(stage)
        }

    def _merge(self, plan: Plan, store: Store) -> dict[str, str]:
        self.require_one(plan)  # the name may have been taken since it was last looked at
        labels = self.labels() | plan.labels
        before = StoreIndex(store).about(self.name) if self.labels() else {}
        known = self._settings(before) if before else {}
        about = {"study": self.study, "scale": self.scale, "axes": sorted(self.axes.union(before.get("axes", ())))}
        about |= {"settings": known | asked_for(plan)}
        if named := self._conditions(plan):
            about["conditions"] = named
        if (looks := self._looks(plan)) > 1:
            about["looks"] = looks
        about["stages"] = labels
        store.write_study(self.name, "plan.json", json.dumps(about, indent=1).encode())
        return labels

    @contextmanager
    def _alone(self) -> Iterator[Store]:
        """Give the store with a lease on the study, as soon as no other driver writes the study."""
        with held(self.store.files, f"{STUDY_LEASE}{self.name}", "is writing the same study") as lease:
            yield Store(self.store.url, str(lease), self.store.files.timeout_s)


def asked_for(plan: Plan) -> dict[str, list[Any]]:
    """Return the values of the settings of a plan's stages. With conditions they are by ``name: setting`` for each
    condition, and by ``setting`` for the control, whose stages a search for ratios may run before the others."""
    if not plan.conditions:
        return varied(plan.stages)
    return {
        setting if each.name == conditions.CONTROL else f"{each.name}: {setting}": values
        for each in plan.conditions
        for setting, values in varied(stage for wanted in each.stages for stage in wanted.lineage).items()
    }


def varied(stages: Iterable[Stage]) -> dict[str, list[Any]]:
    """Return the distinct values of every setting of stages by ``kind.name``, without those in ``GRID``."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        for name, value in settings.own(stage).items():
            if name not in GRID:
                found.setdefault(f"{stage.kind}.{name}", {})[json.dumps(value)] = value
    return {name: [values[text] for text in sorted(values)] for name, values in found.items()}
