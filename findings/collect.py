"""The committed tables of a study. They are small, and docs/findings.md needs nothing else."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

import rayexp
from findings.runs import Run
from rayexp.config import RunConfig
from rayexp.evaluation.statistics import summarised
from rayexp.reports.figures.equal_mass import at_equal_mass
from rayexp.reports.figures.fixed_point import predictions
from rayexp.reports.figures.mass import masses, masses_by_stage
from rayexp.reports.provenance import reserved
from rayexp.stages import Extend, Pretrain, Stage
from rayexp.store.artifacts import Store, StoreError
from rayexp.store.index import StoreIndex

FOLDER = Path(__file__).parents[1] / "docs/findings"
#: Table of how the studies were run, one row each.
RUNS = FOLDER / "runs.csv"
#: Columns of text that may be empty.
TEXTS = ("condition", "setting", "objection", "source")
#: Columns of claims.csv that the page needs.
CLAIMS = [
    *("claim", "title", "condition", "prompt_role", "kl_beta", "role", "ood_ratio", "value", "low", "high", "seeds"),
    *("n", "measured", "verdict", "p", "p_holm", "verdict_holm"),
]


def collect(run: Run, store: str) -> None:
    """Write the tables of a study into docs/findings, and a row on how it was run.

    Raises StoreError if the store has no results of the study, or none of GRPO.
    """
    results, files, study = rayexp.results(run.name, store), Store(store).files, f"studies/{run.name}"
    if not (results["kl_beta"].notna() & results["init_q"].notna()).any():
        raise StoreError(f"{store}/{study} has no GRPO stage that is measured together with its init; finish it first")
    found = files.read_existing([f"{study}/objections.csv", f"{study}/claims.csv"])
    verdicts = {name.removeprefix(f"{study}/"): pd.read_csv(io.BytesIO(data)) for name, data in found.items()}
    tables = {"-claims": verdicts["claims.csv"][CLAIMS]}
    if run.study == "fixed-point":
        tables |= {"": masses(results), "-predictions": with_ways(predictions(results), results)}
    elif "objections.csv" in verdicts:
        tables |= {"": verdicts["objections.csv"], "-bands": _bands(results, Store(store))}
    else:
        tables |= {"": masses(results), "-stages": masses_by_stage(results), "-cells": _by_cell(results)}
        if results["condition"].nunique() > 1:
            tables["-bands"] = _bands(results, Store(store))
    for name, rows in tables.items():
        _write(rows, FOLDER / f"{run.name}{name}.csv")
    _write(_with(run.name, _how(run.name, Store(store)), RUNS), RUNS)


def table(name: str) -> pd.DataFrame:
    """Return a committed table. Empty text stays empty, and missing numbers are NaN."""
    rows = pd.read_csv(FOLDER / f"{name}.csv")
    return rows.fillna({column: "" for column in TEXTS if column in rows})


def _how(study: str, store: Store) -> dict[str, Any]:
    """Return when, on which machine and how long a study was run. Stages that other studies share count in full."""
    index = StoreIndex(store)
    specs = index.specs(json.loads(store.files.read(f"studies/{study}/plan.json"))["stages"])
    records = {stage_id: store.provenance(stage_id) for stage_id in index.finished(specs)}
    cores = {i: reserved(specs[i], RunConfig.model_validate(record["run_config"]))[0] for i, record in records.items()}
    return {
        "from": min(record["started"] for record in records.values())[:10],
        "to": max(record["started"] for record in records.values())[:10],
        "stages": len(records),
        "core_hours": round(sum(cores[i] * float(record["duration_s"]) for i, record in records.items()) / 3600, 2),
        "machine": " and ".join(sorted({str(record["machine"]) for record in records.values()})),
        "seeds": len({spec.chain_seed for spec in specs.values()}),
    }


def _with(study: str, row: dict[str, Any], path: Path) -> pd.DataFrame:
    """Return a table of studies with this study's row, ordered by name."""
    rows = pd.read_csv(path).set_index("study") if path.exists() else pd.DataFrame()
    others = rows.drop(index=study, errors="ignore")
    return pd.concat([others, pd.DataFrame([row], index=pd.Index([study], name="study"))]).sort_index().reset_index()


def _by_cell(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell, OOD ratio and beta: mean mass before and after GRPO, each with its interval."""
    keys = ["condition", "prompt_role", "role", "cell", "kl_beta", "ood_ratio"]
    pairs = results[results["kl_beta"].notna() & results["init_q"].notna()]
    return pd.DataFrame(
        [
            dict(zip(keys, at, strict=True)) | summarised(rows, before="init_q", after="q")
            for at, rows in pairs.groupby(keys)
        ]
    )


def with_ways(predicted: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``predictions`` with the share of the way from mean Q to the mean fixed point that GRPO has
    gone: ``way`` of all seeds together, and ``way_lowest`` and ``way_highest`` of the single ones."""
    keys, places = ["condition", "prompt_role", "kl_beta", "ood_ratio"], ["init_q", "q", "fixed_point"]
    own = results[results["kl_beta"].notna() & (results["role"] == results["prompt_role"])]
    ways = _way(own.groupby([*keys, "seed"])[places].mean()).groupby(keys).agg(way_lowest="min", way_highest="max")
    return predicted.assign(way=_way(predicted)).merge(ways, on=keys, how="left", validate="one_to_one")


def _way(means: pd.DataFrame) -> pd.Series:
    return (means["q"] - means["init_q"]) / (means["fixed_point"] - means["init_q"])


def _bands(results: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Return the gains of conditions at equal mass, with the parameters of their decoders, and the loss on ID samples
    at the end of pretraining, in nats per token: the mean over all decoders and the last tenth of steps."""
    chains = results[results["kl_beta"].notna()].drop_duplicates("stage_id")
    specs = StoreIndex(store).specs(chains["stage_id"].tolist())
    pretrained = {stage_id: last_of_pretraining(spec) for stage_id, spec in specs.items()}
    losses = {stage: _id_loss(store, stage) for stage in set(pretrained.values())}
    chains = chains.assign(id_loss=[losses[pretrained[stage_id]] for stage_id in chains["stage_id"]])
    means = chains.groupby("condition")[["parameters", "id_loss"]].mean().reset_index()
    return at_equal_mass(results).merge(means, on="condition", validate="many_to_one")


def last_of_pretraining(stage: Stage) -> Stage:
    """Return the stage of a chain that ended its pretraining, which other stages may have continued."""
    return [each for each in stage.lineage if isinstance(each, Pretrain | Extend)][-1]


def _id_loss(store: Store, stage: Stage) -> float:
    logged = store.table(stage.id, "metrics.parquet").to_pandas()
    losses = logged[logged["metric"] == f"{stage.kind}/id/loss"].sort_values("step")["value"]
    return float(losses.tail(max(1, len(losses) // 10)).mean())


def _write(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    unfinished = path.with_name(f".{path.name}")
    table.to_csv(unfinished, index=False, float_format="%.6g")
    unfinished.replace(path)
