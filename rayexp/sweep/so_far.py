"""Mean Q of the measurements of a study so far, by condition and stage: the paper's figure while it grows.

The view reads one measurement at a time, so that a slow store never holds the sweep up.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import NamedTuple

import numpy as np

from rayexp.stages import Stage
from rayexp.store.artifacts import Store, StoreError
from rayexp.sweep.plan import Plan

log = logging.getLogger(__name__)

#: Series that are kept, at most.
MOST_SERIES = 1000


class Place(NamedTuple):
    """A condition of a study, a role of its cells, and the kind of stage after which it was measured. Seeds differ
    within it."""

    condition: str
    ood_ratio: str
    kl_beta: str
    role: str
    stage: str


class MeansSoFar:
    """Mean Q over prompts and seeds, in each place of a plan, of the measurements that were read."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self._unseen = {stage.id: stage for stage in plan.stages if stage.pool == "measure"}
        self._unread: list[Stage] = []
        self._q: dict[str, dict[str, float]] = {}  # by the stage that was measured, and by role
        self._places: dict[Place, list[str]] = {}

    def look_for(self, finished: Iterable[str]) -> None:
        """Queue the measurements among finished stages that have not been read yet."""
        self._unread += [self._unseen.pop(stage_id) for stage_id in finished if stage_id in self._unseen]

    def read_one(self) -> bool:
        """Read the next queued measurement. Return whether there was one."""
        if not self._unread:
            return False
        measurement = self._unread.pop()
        try:
            rows = self._store.table(measurement.id, "results.parquet").select(["role", "log_mass"]).to_pandas()
        except (StoreError, KeyError) as error:  # the report says what is wrong with it, and ends with it
            log.warning("cannot export results of %s to Prometheus: %s", self._plan.labels[measurement.id], error)
            return True
        means = np.exp(rows["log_mass"].clip(upper=0)).groupby(rows["role"]).mean()
        self._add(measurement.subject, {str(role): float(q) for role, q in means.items()})
        return True

    def _add(self, subject: Stage, q: Mapping[str, float]) -> None:
        self._q[subject.id] = dict(q)
        for role in q:
            place = self._place(subject, role)
            if place in self._places or len(self._places) < MOST_SERIES:
                self._places.setdefault(place, []).append(subject.id)

    def _place(self, subject: Stage, role: str) -> Place:
        ratio, beta = getattr(subject.root, "ood_ratio", None), getattr(subject, "kl_beta", None)
        prompts = getattr(subject, "prompt_role", None)
        return Place(
            condition=self._plan.condition_names[subject.id],
            ood_ratio="" if ratio is None else f"{ratio:g}",
            kl_beta="" if beta is None else f"{beta:g}",
            role=role,
            stage=f"{subject.kind}-{prompts}" if prompts else subject.kind,
        )

    def masses(self) -> Iterator[tuple[Place, float]]:
        """Yield each place and its mean Q over the seeds that were read."""
        for place, subjects in self._places.items():
            yield place, fmean(self._q[subject][place.role] for subject in subjects)

    def gains(self) -> Iterator[tuple[Place, float]]:
        """Yield each place and its mean gain in Q, for stages whose init was read as well."""
        stages = {stage.id: stage for stage in self._plan.stages}
        for place, subjects in self._places.items():
            pairs = [(i, stages[i].parent) for i in subjects]
            gains = [
                self._q[i][place.role] - self._q[parent.id][place.role]
                for i, parent in pairs
                if parent and place.role in self._q.get(parent.id, ())
            ]
            if gains:
                yield place, fmean(gains)
