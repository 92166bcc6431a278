"""The origin of a report's numbers: the plan, its settings, and how its finished stages were run."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rayexp.config import RunConfig
from rayexp.formatting import one_line
from rayexp.stages import KINDS, Stage, kind_in
from rayexp.stages.settings import condition, own, shown, varying
from rayexp.store.artifacts import Store
from rayexp.store.provenance import commit, other_code
from rayexp.sweep.plan import Plan


def provenance(plan: Plan, store: Store) -> dict[str, Any]:
    """Return where, when and with which packages the finished stages were run, from their records.

    facts: the distinct values of each name. spent: by kind of stage and in all, see ``_spent``. runs: one a stage.
    unread: number of stages whose record is missing or is not one. other_code: number of stages by code that is not the
    one at hand.
    """
    facts: dict[str, dict[str, None]] = {}
    runs, unread, others = [], 0, dict[str, int]()
    finished = {stage.id: stage for stage in plan.stages if stage.id in plan.finished}
    for stage_id, record in store.provenances(finished):
        stage = finished[stage_id]
        if record is None:
            unread += 1
            continue
        try:
            found, started, duration_s = _facts(record), str(record.get("started", "")), float(record["duration_s"])
            cores, gpus = reserved(stage, RunConfig.model_validate(record["run_config"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unread += 1
            continue
        for name, value in found.items():
            facts.setdefault(name, {})[value] = None
        if other := other_code(record):
            others[other] = others.get(other, 0) + 1
        about = {"id": stage.id, "label": plan.labelled(stage), "host": found.get("host", "")}
        about |= {"started": one_line(started)}
        runs.append({**about, "duration_s": duration_s, "core_s": cores * duration_s, "gpu_s": gpus * duration_s})
    distinct = {name: list(values) for name, values in facts.items()}
    return {"facts": distinct, "spent": _spent(runs), "runs": runs, "unread": unread, "other_code": others}


def reserved(stage: Stage, run_config: RunConfig) -> tuple[float, float]:
    """Return the cores and GPUs reserved for a stage. A measurement has those of the stage that it measures."""
    if stage.subject.pool == "rollout":
        learners, workers = run_config.learner_workers, run_config.rollout_workers
        return (
            learners * run_config.learner_cpus + workers * run_config.rollout_cpus,
            learners * (run_config.learner_gpus or 0.0) + workers * (run_config.rollout_gpus or 0.0),
        )
    return run_config.train_workers * run_config.train_cpus, run_config.train_workers * (run_config.train_gpus or 0.0)


def _facts(record: dict[str, Any]) -> dict[str, str]:
    """Return the known facts about the run of a stage. Raises KeyError, TypeError or ValueError if its record is
    none."""
    about = {name: record[name] for name in ("host", "machine", "python")} | {"commit": commit(record["git"])}
    found = {**about, "source": record.get("source"), **record["packages"]}
    return {one_line(str(name)): one_line(str(value)) for name, value in found.items() if value is not None}


def _spent(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return number, median seconds, hours, core-hours and GPU-hours of the last attempts, by kind and in all."""
    of_kind = {kind: [run for run in runs if kind_in(run["id"]) == kind] for kind in KINDS}
    return [
        {
            "kind": kind,
            "n": len(found),
            "median_s": float(np.median([run["duration_s"] for run in found])),
            "hours": sum(run["duration_s"] for run in found) / 3600,
            "core_hours": sum(run["core_s"] for run in found) / 3600,
            "gpu_hours": sum(run["gpu_s"] for run in found) / 3600,
        }
        for kind, found in {**of_kind, "all": runs}.items()
        if found
    ]


def settings(stages: Iterable[Stage]) -> list[tuple[str, str, str]]:
    """Return kind, field and distinct values of every setting of the planned stages; a decoder's count as those of the
    root."""
    distinct: dict[tuple[str, str], dict[str, None]] = {}
    for stage in stages:
        for field, value in own(stage).items():
            if field != "kind":
                distinct.setdefault((stage.kind, field), {})[shown(value)] = None
    return [(kind, field, ", ".join(values)) for (kind, field), values in distinct.items()]


def design(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Return, as text, the distinct values of what varies in a plan, and its decoders."""
    trained = [stage for stage in stages if stage.pool != "measure"]
    roots = [stage.root for stage in trained]
    decoders = [
        f"{root.parameters:,} parameters ("
        + ", ".join(f"{name} {value}" for name, value in root.decoder.model_dump().items())
        + ")"
        for root in roots
    ]
    distinct = {
        "seed": _values(roots, "seed"),
        "OOD ratio": _values(roots, "ood_ratio"),
        "decoder": decoders,
        "prompts": _values(trained, "prompt_role"),
        "β": _values(trained, "kl_beta"),
    }
    for setting, title in varying(trained).items():
        distinct[title] = [condition(stage, {setting: title}).partition(" = ")[2] for stage in trained]
    return {name: list(filter(None, dict.fromkeys(values))) for name, values in distinct.items() if any(values)}


def _values(stages: Iterable[Stage], field: str) -> list[str]:
    """Return the values of a field, of the stages that have it."""
    return [shown(getattr(stage, field)) for stage in stages if hasattr(stage, field)]


def stage_counts(plan: Plan) -> list[dict[str, Any]]:
    """Return the numbers of planned and finished stages by kind."""
    counts = []
    for kind in KINDS:
        ids = {i for i in [*(stage.id for stage in plan.stages), *plan.unread] if kind_in(i) == kind}
        if ids:
            counts.append({"kind": kind, "planned": len(ids), "finished": len(ids & plan.finished)})
    return counts
