"""Two studies, or two parts of one, side by side, prompt by prompt.

Two stages are paired if they agree in all settings of their lineage, except those in which the studies differ: settings
with one value in one study and another value in the other. Rows of paired stages are paired by role, cell and
prompt_index. So a study with another objective is compared seed by seed, ratio by ratio, beta by beta. Stages and rows
without a partner are counted and left out.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from rayexp.errors import did_you_mean, not_among
from rayexp.evaluation.metrics import Interval
from rayexp.evaluation.statistics import interval, possible_change
from rayexp.formatting import number
from rayexp.parts import unread_parts
from rayexp.reports.pairing import paired
from rayexp.stages import Stage, kind_in, settings
from rayexp.store import parquet
from rayexp.store.artifacts import Store, StoreError
from rayexp.store.index import StoreIndex
from rayexp.studies.conditions import CONTROL

KEY = ["role", "cell", "prompt_index"]
COLUMNS = ["stage_id", *KEY, "prompt", "q"]
#: About a pair of stages.
JOINED = ["stage", "ood_ratio", "ood_ratio_a", "ood_ratio_b", "seed"]
#: How a setting that is not the same in both studies bears on the pairing.
DROPPED, SHARED, APART = "left out of it", "paired where equal", "no value in common: nothing pairs"


@dataclass(frozen=True)
class Study:
    """A study with results, or a part of one. rows: its results table; stages: the measured ones by id, with the
    settings along each; ends: ids of the last stages of conditions, by name. by, value: the setting that a part of a
    study has only one value of, and that value."""

    title: str
    rows: pd.DataFrame
    stages: dict[str, Stage]
    flat: dict[str, dict[str, Any]]
    ends: Mapping[str, Collection[str]] = field(default_factory=dict)
    by: str | None = None
    value: Any = None

    @classmethod
    def read(cls, reference: str, store_url: str) -> "Study":
        """Read ``NAME`` in the store at ``store_url``, ``STORE::NAME``, or the folder ``STORE/studies/NAME``.

        Raises StoreError if there is no such study, or if its results can't be read.
        """
        url, name = _located(reference, store_url)
        return cls.of(Store(url), name)

    @classmethod
    def of(cls, store: Store, name: str) -> "Study":
        """Return the study of this name in a store. Raises as ``read`` does."""
        index, url = StoreIndex(store), store.url
        index.require_there()
        path = f"studies/{name}/results.parquet"
        try:
            data = store.files.read(path)
        except FileNotFoundError:
            known = index.studies(having="results.parquet")
            others = f"those with results are {', '.join(known)}" if known else "no study has any"
            raise StoreError(
                f"study={name!r} has no results in the store {url}; {others}{did_you_mean(name, known)}"
            ) from None
        rows = parquet.table(data, f"{url}/{path}", COLUMNS).to_pandas()
        if missing := [column for column in COLUMNS if column not in rows]:
            raise StoreError(f"{url}/{path} has no column {missing[0]}")
        stages = index.specs(rows["stage_id"].unique().tolist())
        named = index.about(name).get("conditions", {})
        ends = {each: about["ends"] for each, about in named.items()}
        return cls(f"{name} in {url}", rows, stages, {i: settings.along(stage) for i, stage in stages.items()}, ends)

    def parts(self, by: str) -> list["Study"]:
        """Return a part of the study for each value of a setting, numbers by size. Stages without the setting in their
        lineage are in no part.

        by: a name such as ``grpo.kl_beta``, its title, or its end if that belongs to only one setting that varies;
        ``condition`` for the conditions of a study by name, the control first. Raises ValueError for any other.
        """
        if by == "condition" and self.ends:
            return [
                self._part(by, name, self.ends[name]) for name in sorted(self.ends, key=lambda name: name != CONTROL)
            ]
        placed = {i: settings.placed(stage) for i, stage in self.stages.items()}
        values: dict[settings.Setting, list[Any]] = {}
        for each in placed.values():
            for setting, value in each.items():
                values.setdefault(setting, []).append(value)
        varying = {setting: found for setting in values if len(found := settings.distinct(values[setting])) > 1}
        chosen = self._setting(by, values, varying)
        return [
            self._part(
                settings.column(chosen), value, {i for i, each in placed.items() if each.get(chosen, placed) == value}
            )
            for value in varying[chosen]
        ]

    def _setting(
        self, by: str, known: Collection[settings.Setting], varying: Collection[settings.Setting]
    ) -> settings.Setting:
        """Return the setting that varies and is called ``by``."""
        if not varying:
            raise ValueError(f"by={by!r} leaves nothing to compare: no setting varies in {self.title}")
        titles = settings.varying(self.stages.values())
        called = [
            setting
            for setting in known
            if f".{settings.column(setting)}".endswith(f".{by}") or titles.get(setting) == by
        ]
        allowed = [setting for setting in called if setting in varying]
        if len(allowed) == 1:
            return allowed[0]
        names = [settings.column(setting) for setting in allowed or varying]
        if not called:
            raise ValueError(not_among("by", by, names))
        why = "is the end of several names" if allowed else f"has one value in {self.title}"
        raise ValueError(f"by={by!r} {why}; choose from {', '.join(names)}")

    def _part(self, by: str, value: Any, ids: Collection[str]) -> "Study":
        """Return the part of the study with these stages. Rows of unknown stages stay in it, so that they are
        counted."""
        others = self.stages.keys() - set(ids)
        return Study(
            f"{self.title}, {by} = {settings.shown(value)}",
            self.rows[~self.rows["stage_id"].isin(others)],
            {i: self.stages[i] for i in self.stages if i in ids},
            {i: self.flat[i] for i in self.flat if i in ids},
            by=by,
            value=settings.plain(value),
        )


class Differing(NamedTuple):
    """A setting of a kind of stage that differs between A and B, its values in both, and its role in the pairing. A
    value is None where a stage has no such setting."""

    of: str
    setting: str
    a: list[Any]
    b: list[Any]
    in_pairing: str


@dataclass(frozen=True)
class Comparison:
    """The comparison of two studies. table: one row for each stage of the chain, OOD ratio and role. unpaired:
    sentences about stages and prompts that were left out. notes: sentences about the others."""

    a: Study
    b: Study
    differing: list[Differing]
    table: pd.DataFrame
    unpaired: list[str]
    notes: list[str]

    @property
    def values(self) -> dict[str, Any]:
        """Return the values of the setting by which parts of one study are compared; empty for two studies."""
        return {"value_a": self.a.value, "value_b": self.b.value} if self.a.by else {}


def compare(a: Study, b: Study) -> Comparison:
    """Return mean Q in both and the paired difference B - A, with 95 % intervals over seeds, then prompts.

    Columns of the table: stage (short labels of the chain, and what else varies within a study) and ood_ratio, as
    texts, A's | B's where they differ; role; the ratios as numbers; mean_q_a and mean_q_b over the pairs; difference,
    low, high; undecided, where that interval says nothing; seeds, pairs.
    """
    bearing = _bearing(a, b)
    pairs = _of_conditions(a, b) if a.by == "condition" else _of_equals(a, b, bearing)
    joined = _concat(a, b, pairs)
    keys = ["stage", "ood_ratio", "role", "ood_ratio_a", "ood_ratio_b"]
    rows = []
    for names, group in joined.groupby(keys, sort=False):
        gain = interval(group, "difference", possible_change(group["q_a"]))
        rows.append(
            dict(zip(keys, names, strict=True))
            | {"mean_q_a": group["q_a"].mean(), "mean_q_b": group["q_b"].mean()}
            | {"difference": gain.mean, "low": gain.low, "high": gain.high, "undecided": gain.undecided}
            | {"seeds": gain.seeds, "pairs": gain.prompts}
        )
    columns = [*keys, "mean_q_a", "mean_q_b", "difference", "low", "high", "undecided", "seeds", "pairs"]
    table = pd.DataFrame(rows, columns=columns)
    return Comparison(a, b, _differing(a, b, bearing), table, _unpaired(a, b, pairs, joined), _notes(a, b, joined))


def difference_text(row: Mapping[Any, Any]) -> str:
    """Return the difference of a row of the table with its interval, as text."""
    possible = (-row["mean_q_a"], 1 - row["mean_q_a"])
    found = Interval(row["difference"], row["low"], row["high"], row["seeds"], row["pairs"], possible)
    return f"{found:+.3g}"


def _of_equals(a: Study, b: Study, bearing: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Return the stages of B, by those of A, that agree with them along their lineage."""
    partners = {_key(b, stage_id, bearing): stage_id for stage_id in b.stages}
    return {i: partners[key] for i in a.stages if (key := _key(a, i, bearing)) in partners}


def _of_conditions(a: Study, b: Study) -> dict[str, str]:
    """Return the ends of one condition, each with the end of the other that starts from an equal root."""
    return {one.id: two.id for one, two in paired([*a.stages.values()], [*b.stages.values()])}


def _located(reference: str, store_url: str) -> tuple[str, str]:
    """Return store and name of a study."""
    url, separator, name = reference.rpartition("::")
    if separator and "/" not in name:  # else it is part of a folder's name
        return url, name
    path = reference.rstrip("/")
    url, separator, name = path.rpartition("/studies/")
    if separator:
        return url, name
    if "/" in path:
        raise ValueError(f"study={reference!r} should be NAME, STORE::NAME, or STORE/studies/NAME")
    return store_url, path


def _bearing(a: Study, b: Study) -> dict[tuple[str, str], str]:
    """Return the role in the pairing of each setting that differs between the studies, by the kinds of its chain and
    its dotted name."""
    found: dict[tuple[str, str], str] = {}
    values = {study.title: _values(study) for study in (a, b)}
    for place in dict.fromkeys([*values[a.title], *values[b.title]]):
        mine, theirs = (set(values[study.title].get(place, ())) for study in (a, b))
        if mine and theirs and mine != theirs:
            single = len(mine) == len(theirs) == 1
            found[place] = SHARED if mine & theirs else DROPPED if single else APART
    return found


def _values(study: Study) -> dict[tuple[str, str], list[str]]:
    """Return the values of every setting, as text, by the kinds of its chain and its dotted name."""
    chains: dict[str, list[dict[str, Any]]] = {}
    for stage_id, flat in study.flat.items():
        chains.setdefault(_kinds(study.stages[stage_id]), []).append(flat)
    return {
        (kinds, name): [repr(flat.get(name)) for flat in flats]
        for kinds, flats in chains.items()
        for name in dict.fromkeys(name for flat in flats for name in flat)
    }


def _key(study: Study, stage_id: str, bearing: Mapping[tuple[str, str], str]) -> tuple[Any, ...]:
    kinds, flat = _kinds(study.stages[stage_id]), study.flat[stage_id]
    return kinds, *sorted((name, repr(flat[name])) for name in flat if bearing.get((kinds, name)) != DROPPED)


def _concat(a: Study, b: Study, pairs: Mapping[str, str]) -> pd.DataFrame:
    """Return one row a pair of prompts: JOINED, KEY, q and prompt of both, difference."""
    frames = []
    rows = {study.title: dict(list(study.rows.groupby("stage_id", sort=False))) for study in (a, b)}
    varies = settings.varying(a.stages.values()) | settings.varying(b.stages.values())
    conditions = {
        i: _both(*(settings.condition(stage, varies) for stage in (a.stages[i], b.stages[pairs[i]]))) for i in pairs
    }
    order = {
        i: (len(a.stages[i].lineage), _chain(a.stages[i]), conditions[i], a.stages[i].root.ood_ratio) for i in pairs
    }
    for mine in sorted(pairs, key=lambda stage_id: order[stage_id]):
        one, other = a.stages[mine], b.stages[theirs := pairs[mine]]
        left, right = rows[a.title][mine], rows[b.title][theirs]
        frame = left.merge(right, on=KEY, suffixes=("_a", "_b"))
        frames.append(
            frame.assign(
                stage=", ".join(filter(None, [_chains(one, other), conditions[mine]])),
                ood_ratio=_both(number(one.root.ood_ratio), number(other.root.ood_ratio)),
                ood_ratio_a=one.root.ood_ratio,
                ood_ratio_b=other.root.ood_ratio,
                seed=one.chain_seed,
                difference=frame["q_b"] - frame["q_a"],
            )
        )
    if not frames:
        return pd.DataFrame(columns=[*JOINED, *KEY, "q_a", "q_b", "difference"])
    return pd.concat(frames, ignore_index=True)


def _differing(a: Study, b: Study, bearing: Mapping[tuple[str, str], str]) -> list[Differing]:
    """Return each setting that differs, once, although it is in the lineage of every stage below, too."""
    found: dict[tuple[str, str], Differing] = {}
    for (kinds, name), how in bearing.items():
        stage = next(stage for stage in a.stages.values() if _kinds(stage) == kinds)
        of, own = settings.kind_at(name, stage), name.rpartition("init.")[2]
        mine, theirs = (
            settings.distinct(study.flat[i].get(name) for i, stage in study.stages.items() if _kinds(stage) == kinds)
            for study in (a, b)
        )
        found.setdefault((of, own), Differing(of, own, mine, theirs, how))
    return list(found.values())


def _unpaired(a: Study, b: Study, pairs: Mapping[str, str], joined: pd.DataFrame) -> list[str]:
    """Count the stages and prompts without a partner."""
    said = []
    for letter, study, partnered in (("A", a, set(pairs)), ("B", b, set(pairs.values()))):
        measured = set(study.rows["stage_id"].unique())
        if unread := measured - study.stages.keys():
            said.append(f"{len(unread)} measured stages of {letter}, whose specs are not in its store")
        if alone := measured & study.stages.keys() - partnered:
            kinds = Counter(kind_in(stage_id) for stage_id in sorted(alone))
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            said.append(f"{len(alone)} of {len(measured)} measured stages of {letter} ({counted})")
        rows = int(study.rows["stage_id"].isin(partnered).sum())
        if rows > len(joined):
            said.append(f"{rows - len(joined)} prompts of paired stages of {letter}")
    return said


def _notes(a: Study, b: Study, joined: pd.DataFrame) -> list[str]:
    """Return notes for the reader of the table."""
    unread = {part.kind for stage in [*a.stages.values(), *b.stages.values()] for part in unread_parts(stage)}
    notes = [f"Not imported, and compared as stored: {', '.join(sorted(unread))}."] if unread else []
    if joined.empty:
        return notes
    if same := joined.loc[joined["stage_id_a"] == joined["stage_id_b"], "stage_id_a"].nunique():
        notes.append(f"{same} pairs of stages are one and the same stage: their difference is 0 by construction.")
    if texts := int((joined["prompt_a"] != joined["prompt_b"]).sum()):
        notes.append(f"{texts} of {len(joined)} pairs of prompts differ in text, because the tasks of the studies do.")
    if joined["seed"].nunique() == 1:
        notes.append("One seed: the intervals cover prompts only and say nothing about another run.")
    return notes


def _kinds(stage: Stage) -> str:
    return "/".join(each.kind for each in stage.lineage)


def _chain(stage: Stage) -> str:
    return "/".join(each.short_label for each in stage.lineage)


def _chains(mine: Stage, theirs: Stage) -> str:
    """Return the chain of two paired stages, whose labels may differ: ``pretrain/sft/grpo-ood-b0.1|grpo-ood-b1``."""
    chains = [_chain(stage).split("/") for stage in (mine, theirs)]
    if len({len(chain) for chain in chains}) > 1:
        return _both(*map("/".join, chains))
    return "/".join(_both(one, other) for one, other in zip(*chains, strict=True))


def _both(mine: str, theirs: str) -> str:
    return mine if mine == theirs else f"{mine}|{theirs}"
