"""Results of a study as two long tables: one row a test prompt of a stage, and one row a training metric.

Both carry the settings of the stage in plain columns, so that pandas, polars or duckdb can group by them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rayexp.evaluation.metrics import pass_at_k, pass_at_k_sampled
from rayexp.stages import Stage
from rayexp.stages.settings import Setting, condition, labelled, varied, varying
from rayexp.store.artifacts import Store, StoreError
from rayexp.sweep.plan import Plan

#: Columns that say which stage a row is about; None where a setting does not apply.
STAGE_COLUMNS: dict[str, pa.DataType] = {
    "stage_id": pa.string(),
    "kind": pa.string(),
    "label": pa.string(),
    "init_id": pa.string(),
    "task": pa.string(),
    "exact": pa.bool_(),  # whether the right completion is unique, so that q is all of Q
    "layers": pa.int64(),
    "parameters": pa.int64(),
    "ood_ratio": pa.float64(),
    "seed": pa.int64(),
    "prompt_role": pa.string(),  # of the prompts that completions are drawn for: id, ood, probe
    "kl_beta": pa.float64(),
    "group_size": pa.int64(),
    "steps": pa.int64(),
    "condition": pa.string(),  # what else differs within the study, along the chain; empty where nothing does
}
#: Values of k for which pass@k is written down; where q is exact any other follows from it.
PASS_AT = (8, 64, 1024)
#: log_mass: log-probability of the gold completion, nats. q: its exponential: the exact correct mass where the right
#: completion is unique, else a lower bound. init_q: the same for the stage's init, NaN for pretraining. pass_at_k:
#: exact where q is; else the unbiased estimate from the sampled answers, NaN where fewer than k were drawn. completion:
#: what greedy decoding writes.
RESULTS = pa.schema(
    [
        *STAGE_COLUMNS.items(),
        ("role", pa.string()),
        ("cell", pa.string()),
        ("prompt_index", pa.int64()),
        ("prompt", pa.string()),
        ("gold", pa.string()),
        ("log_mass", pa.float64()),
        ("q", pa.float64()),
        ("init_q", pa.float64()),
        *((f"pass_at_{k}", pa.float64()) for k in PASS_AT),
        ("greedy_correct", pa.bool_()),
        ("completion", pa.string()),
        ("sampled", pa.int64()),
        ("answer_correct", pa.int64()),
        ("trace_correct", pa.int64()),
    ]
)
CURVES = pa.schema([*STAGE_COLUMNS.items(), ("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
#: What of the two a stage itself writes (``measure.SCHEMA``, ``metric_log.SCHEMA``); the rest is added here.
_ADDED = {*STAGE_COLUMNS, "q", "init_q", *(f"pass_at_{k}" for k in PASS_AT)}
MEASURED, LOGGED = (pa.schema([column for column in whole if column.name not in _ADDED]) for whole in (RESULTS, CURVES))
#: By how much rounding may lift a log-probability above 0.
ROUNDING = 1e-3


def settings(stage: Stage, varies: Mapping[Setting, str]) -> dict[str, Any]:
    """The stage's values of ``STAGE_COLUMNS``. varies: what differs within its study (``settings.varying``)."""
    root = stage.root
    return {
        "stage_id": stage.id,
        "kind": stage.kind,
        "label": labelled(stage, varies),
        "init_id": stage.parent.id if stage.parent else None,
        "task": root.task.label,
        "exact": root.task.unique,
        "layers": root.decoder.layers,
        "parameters": root.parameters,
        "ood_ratio": getattr(root, "ood_ratio", None),
        "seed": root.seed,
        **{name: getattr(stage, name, None) for name in ("prompt_role", "kl_beta", "group_size", "steps")},
        "condition": condition(stage, varies),
    }


def results(plan: Plan, store: Store) -> pd.DataFrame:
    """Rows of ``RESULTS`` for every finished measurement of the plan, in the plan's order; after its columns one for
    each further setting by which stages of the plan differ, such as ``grpo.group_size``."""
    frames: dict[str, pd.DataFrame] = {}
    varies = varying(plan.trained)
    for stage in plan.stages:
        if stage.pool == "measure" and stage.id in plan.finished:
            frame = measured(store, stage.id)
            frames[stage.subject.id] = with_pass_at_k(
                frame.assign(**settings(stage.subject, varies), **varied(stage.subject, varies))
            )
    for frame in frames.values():
        init = frames.get(str(frame["init_id"].iloc[0]))
        keys = ["cell", "prompt_index"]
        if init is None:
            frame["init_q"] = float("nan")
        else:
            before = init[[*keys, "q"]].set_axis([*keys, "init_q"], axis=1)
            frame["init_q"] = frame[keys].merge(before, on=keys, how="left", validate="one_to_one")["init_q"].to_numpy()
    rows = _framed(list(frames.values()), _with_varied(RESULTS, frames.values()))
    counts = [name for name in rows.columns.difference(RESULTS.names) if _whole(rows[name])]
    return rows.astype(dict.fromkeys(counts, "Int64"))


def measured(store: Store, stage_id: str) -> pd.DataFrame:
    """Return the rows of one finished measurement, with ``q``. Raises StoreError on a table that none would write."""
    frame = _read(store, stage_id, "results.parquet", MEASURED)
    return frame.assign(q=np.exp(frame["log_mass"].clip(upper=0)))


def to_arrow(results: pd.DataFrame) -> pa.Table:
    """Return ``results`` as it is stored: ``RESULTS`` with the columns of what varies behind."""
    varied_columns = pa.Schema.from_pandas(results.drop(columns=RESULTS.names), preserve_index=False)
    return pa.Table.from_pandas(results, pa.schema([*RESULTS, *varied_columns]), preserve_index=False)


def _with_varied(schema: pa.Schema, frames: Iterable[pd.DataFrame]) -> pa.Schema:
    """Return the schema with the columns that frames have besides it, each of the type of its values."""
    values: dict[str, list[Any]] = {}
    for frame in frames:
        for name in frame.columns.difference(schema.names, sort=False):
            values.setdefault(name, []).append(frame[name].iloc[0])
    for name, found in values.items():
        schema = schema.append(pa.field(name, pa.array(found, from_pandas=True).type))
    return schema


def _whole(values: pd.Series) -> bool:
    """Return whether a column holds whole numbers, which pandas makes floats of where some rows have none."""
    known = values.dropna()
    numbers = pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known)
    return numbers and bool((known % 1 == 0).all())


def with_pass_at_k(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one stage with their ``pass_at_k`` columns."""
    sampled = int(frame["sampled"].max())
    for k in PASS_AT:
        if not sampled:
            frame[f"pass_at_{k}"] = pass_at_k(frame["q"].to_numpy(), k)
        elif k <= sampled:
            frame[f"pass_at_{k}"] = pass_at_k_sampled(sampled, frame["answer_correct"].to_numpy(), k)
        else:
            frame[f"pass_at_{k}"] = np.nan
    return frame


def curves(plan: Plan, store: Store) -> pd.DataFrame:
    """Rows of ``CURVES`` for every finished training stage of the plan."""
    frames, varies = [], varying(plan.trained)
    for stage in plan.trained:
        if stage.id in plan.finished:
            frame = _read(store, stage.id, "metrics.parquet", LOGGED)
            frames.append(frame.assign(**settings(stage, varies)))
    return _framed(frames, CURVES)


def _read(store: Store, stage_id: str, name: str, schema: pa.Schema) -> pd.DataFrame:
    """A table that a stage wrote. Raises StoreError with the first thing about it that no stage would write."""
    found = store.table(stage_id, name)
    if problem := next(_problems(found, schema), None):
        raise StoreError(f"{store.url}/stages/{stage_id}/{name} {problem}")
    return found.select(schema.names).to_pandas(ignore_metadata=True)


def _problems(found: pa.Table, schema: pa.Schema) -> Iterator[str]:
    """Find what is wrong with a table; each problem is looked for in one that has none of those before."""
    for column in schema:
        at = found.schema.get_field_index(column.name)  # -1 also where there are two of them
        if at < 0:
            yield f"has not exactly one column {column.name}"
        if (kind := found.schema.field(at).type) != column.type:
            yield f"has a column {column.name} of type {kind}; allowed: {column.type}"
        if found.column(at).null_count or (column.type == pa.float64() and not np.isfinite(found.column(at)).all()):
            yield f"has a row whose {column.name} is empty or not finite"
    if schema is MEASURED:
        rows = found.select(schema.names).to_pandas(ignore_metadata=True)
        counts = rows[["sampled", "answer_correct", "trace_correct"]]
        if rows.empty:
            yield "has no rows"
        if rows.duplicated(["cell", "prompt_index"]).any():
            yield "has several rows with the same cell and prompt_index"
        if rows["log_mass"].max() > ROUNDING:
            yield f"has a log_mass of {rows['log_mass'].max():g}; allowed: at most 0"
        if counts.lt(0).any(axis=None) or counts.gt(rows["sampled"], axis=0).any(axis=None):
            yield "has a row whose answer_correct or trace_correct is not between 0 and sampled"


def _framed(frames: list[pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    if not frames:
        return schema.empty_table().to_pandas()
    rows = pd.concat([frame.reindex(columns=schema.names) for frame in frames], ignore_index=True)
    # Through Arrow, so that a column in which a setting never applies has its type all the same.
    return pa.Table.from_pandas(rows, schema=schema, preserve_index=False).to_pandas()
