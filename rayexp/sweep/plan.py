"""The plan: the unique stages that a study wants, which of them are finished, and the trials that run the rest.

A trial is a group of stages that is scheduled as one. Training stages with the same root form one trial (they share a
worker group, which costs more to start than they cost to run), each stage that draws rollouts forms one of its own, and
measurements belong to the trial of the stage that they measure.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rayexp.stages import KINDS, Pool, Stage, settings
from rayexp.studies.conditions import Condition, Wanted, all_stages, conditions_in
from rayexp.terminal import Column, table

#: Bytes of a trial's name that come from its label. A file's name may have 255; Ray Tune adds some 60.
NAME_BYTES = 150
#: What a study varies, with the name that a plan gives it.
GRID = {"ood_ratio": "OOD ratios", "kl_beta": "β", "prompt_role": "prompts of GRPO", "seed": "seeds"}


@dataclass(frozen=True)
class Trial:
    """Stages that run one after the other, parents first, and the trials that have to finish before them. label: that
    of the first stage in its plan."""

    id: str
    pool: Pool  # of its first stage; a measurement by itself takes one process, as training does
    stages: tuple[Stage, ...]
    parents: tuple[str, ...]
    label: str

    @property
    def name(self) -> str:
        """Return one word, for folders and tools: the label, cut so that a file system takes it, and as much of the id
        as makes it unique."""
        label = self.stages[0].label.replace("/", "_").encode()[:NAME_BYTES].decode(errors="ignore")
        return f"{label}_{self.id.rpartition('-')[2][:8]}"

    @property
    def flops(self) -> float:
        """Return the estimated floating-point operations of all its stages."""
        return sum(stage.flops for stage in self.stages)


@dataclass(frozen=True, repr=False, eq=False)  # to compare 100,000 stages, or to hash them, takes a second
class Plan:
    """Unique stages, parents before children, and which of them are finished. ``unread``: ids of further unfinished
    stages of the study, whose settings are not known here. ``conditions``: those of the study, if it has any.
    ``looks``: number of times that verdicts are looked at to decide whether to go on."""

    study: str
    stages: tuple[Stage, ...]
    finished: frozenset[str]
    unread: frozenset[str] = frozenset()
    conditions: tuple[Condition, ...] = ()
    looks: int = 1

    @classmethod
    def of(
        cls,
        study: str,
        wanted: Iterable[Wanted],
        finished: Collection[str],
        unread: Collection[str] = (),
        looks: int = 1,
    ) -> "Plan":
        """Return the plan of a study: the stages that it wants with all their ancestors, each once.

        Raises ValueError as ``studies.conditions_in`` does.
        """
        wanted, unique = list(wanted), dict[str, Stage]()
        for stage in all_stages(wanted):
            for ancestor in stage.lineage:
                unique.setdefault(ancestor.id, ancestor)
        known, stages = unique.keys(), tuple(unique.values())
        return cls(
            study, stages, frozenset(finished) & known, frozenset(unread) - known, tuple(conditions_in(wanted)), looks
        )

    @property
    def trained(self) -> tuple[Stage, ...]:
        """Return all stages but the measurements."""
        return tuple(stage for stage in self.stages if stage.pool != "measure")

    @property
    def to_run(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if stage.id not in self.finished)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Return a readable name of every stage by id: its label, with the settings that tell apart stages with the
        same label."""
        labels = {stage.id: stage.label for stage in self.stages}
        if not self.conditions and len(set(labels.values())) == len(labels):
            return labels
        return {stage.id: self.labelled(stage) for stage in self.stages}

    def labelled(self, stage: Stage) -> str:
        """Return the label of a stage with its condition, so that no two stages of the study have the same."""
        return ", ".join(filter(None, [stage.label, self.condition_names[stage.subject.id]]))

    @cached_property
    def condition_names(self) -> dict[str, str]:
        """Return the condition of every training stage by id, as text: the name of the condition that ends in it, then
        the settings that tell apart stages with the same name."""
        names = {end.id: condition.name for condition in self.conditions for end in condition.ends}
        return settings.condition_names(self.trained, names)

    @cached_property
    def copies(self) -> dict[str, int]:
        """Return how often each stage would be run if nothing were shared, by id: once for each chain of training
        stages that it is in. A chain ends in a stage from which nothing else is trained; a measurement is in the chains
        of its stage."""
        ends = {stage.id: 0 for stage in self.stages}
        for stage in reversed(self.stages):
            if stage.pool != "measure":
                ends[stage.id] = ends[stage.id] or 1
                if stage.parent:
                    ends[stage.parent.id] += ends[stage.id]
        return {stage.id: ends[stage.subject.id] for stage in self.stages}

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Return the unfinished stages in trials, parents first."""
        groups: dict[str, list[Stage]] = {}
        for stage in self.to_run:
            groups.setdefault(self.trial_of(stage), []).append(stage)
        home = {stage.id: group for group, members in groups.items() for stage in members}
        return tuple(
            Trial(
                id=group,
                pool="train" if members[0].pool == "measure" else members[0].pool,
                stages=tuple(members),
                parents=tuple(
                    dict.fromkeys(
                        home[stage.parent.id]
                        for stage in members
                        if stage.parent and stage.parent.id in home and home[stage.parent.id] != group
                    )
                ),
                label=self.labels[members[0].id],
            )
            for group, members in groups.items()
        )

    def trial_of(self, stage: Stage) -> str:
        """Return the id of the trial of a stage. It is the same in every plan, because leases are named after it."""
        first = stage.subject
        while first.pool == "train" and first.parent and first.parent.pool == "train":
            first = first.parent
        return first.id

    def descendants(self, failed: Collection[str]) -> set[str]:
        """Return the trials that can't run because one of ``failed`` (trial ids) is among their ancestors."""
        blocked: set[str] = set()
        for trial in self.trials:
            if any(parent in failed or parent in blocked for parent in trial.parents):
                blocked.add(trial.id)
        return blocked

    def __repr__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Return the number of stages of each kind, and of those to run, as a table."""

        def row(name: str, stages: Sequence[Stage]) -> tuple[str, ...]:
            pending = [stage for stage in stages if stage.id not in self.finished]
            counts = (len(stages), len(stages) - len(pending), len(pending))
            return (name, *map(str, counts), f"{sum(stage.flops for stage in pending):.2g}")

        of_kind = {kind: [stage for stage in self.stages if stage.kind == kind] for kind in KINDS}
        rows = [row(kind, stages) for kind, stages in of_kind.items() if stages]
        numbers = ("in all", "cached", "to run", "estimated FLOP to run")
        columns = (Column("stage"), *(Column(name, right=True) for name in numbers))
        apart = sum(self.copies.values())
        shared = f" ({apart} if nothing were shared)" if apart > len(self.stages) else ""
        return (
            f"plan of study {self.study}: {len(self.stages)} stages{shared}, "
            f"{len(self.trials)} trials to run\n{table(columns, [*rows, row('total', self.stages)])}{self._grid()}"
        )

    def _grid(self) -> str:
        """Return a line with the distinct values of what a study varies, in the order of the plan."""
        values: dict[str, list[str]] = {name: [] for name in GRID.values()}
        for stage in self.stages:
            settings_of_stage = {"seed": stage.chain_seed} | dict(stage)
            for setting, name in GRID.items():
                if settings_of_stage.get(setting) is not None:
                    values[name].append(settings.shown(settings_of_stage[setting]))
        varied = [f"{name} {', '.join(dict.fromkeys(found))}" for name, found in values.items() if found]
        return f"\ngrid: {'; '.join(varied)}" if varied else ""
