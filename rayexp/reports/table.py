"""Results of a study as two long tables: one row a test prompt of a stage, and one row a training metric.

Both carry the settings of the stage in plain columns, so that pandas, polars or duckdb can group by them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rayexp.evaluation.fixed_point import beyond_theory, fixed_points
from rayexp.evaluation.metrics import pass_at_k, pass_at_k_sampled
from rayexp.reports.copies import with_copied
from rayexp.stages import GRPO, Stage
from rayexp.stages.settings import varied, varying
from rayexp.store.artifacts import Store, StoreError
from rayexp.sweep.plan import Plan
from rayexp.tasks.base import TEMPLATE

#: Columns that say which stage a row is about; None where a setting does not apply.
STAGE_COLUMNS: dict[str, pa.DataType] = {
    "stage_id": pa.string(),
    "kind": pa.string(),
    "label": pa.string(),
    "init_id": pa.string(),
    "task": pa.string(),
    "exact": pa.bool_(),  # whether the right completion is unique, so that q is all of Q
    "source": pa.string(),  # of the model that others have trained, if the chain starts from one
    "layers": pa.int64(),
    "parameters": pa.int64(),
    "ood_ratio": pa.float64(),
    "seed": pa.int64(),
    "prompt_role": pa.string(),  # of the prompts that completions are drawn for: id, ood, probe
    "kl_beta": pa.float64(),
    "group_size": pa.int64(),
    "steps": pa.int64(),
    # Its name where the study has conditions, and what else differs within the study along the chain; may be empty.
    "condition": pa.string(),
}
#: A number for each token of a completion. In pandas such a column stays in Arrow's memory, because an object for each
#: list takes several times as much.
TOKENS = pa.list_(pa.float64())
#: Values of k for which pass@k is written down; where q is exact any other follows from it.
PASS_AT = (8, 64, 1024)
#: template: of the question, where its task has such. copied: whether pretraining had copies of the prompt, null
#: where it had copies of none (``tasks.copies``). log_mass: log-probability of the gold completion, nats;
#: token_log_mass: of each of its tokens. q: the exponential of log_mass: the exact correct mass where the right
#: completion is unique, else a lower bound. init_q, init_token_log_mass: the same for the stage's init, NaN and null
#: for pretraining. fixed_point, highest_fixed_point: the fixed points of GRPO as it is run, from its init and at most;
#: NaN where beyond_theory says why. pass_at_k: exact where q is; else the unbiased estimate from the sampled answers,
#: NaN where fewer than k were drawn. completion: what greedy decoding writes.
RESULTS = pa.schema(
    [
        *STAGE_COLUMNS.items(),
        ("role", pa.string()),
        ("cell", pa.string()),
        ("prompt_index", pa.int64()),
        ("template", pa.string()),
        ("copied", pa.bool_()),
        ("prompt", pa.string()),
        ("gold", pa.string()),
        ("log_mass", pa.float64()),
        ("token_log_mass", TOKENS),
        ("q", pa.float64()),
        ("init_q", pa.float64()),
        ("init_token_log_mass", TOKENS),
        ("fixed_point", pa.float64()),
        ("highest_fixed_point", pa.float64()),
        ("beyond_theory", pa.string()),
        *((f"pass_at_{k}", pa.float64()) for k in PASS_AT),
        ("greedy_correct", pa.bool_()),
        ("completion", pa.string()),
        ("sampled", pa.int64()),
        ("answer_correct", pa.int64()),
        ("trace_correct", pa.int64()),
    ]
)
CURVES = pa.schema([*STAGE_COLUMNS.items(), ("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])
#: Columns of text and lists. They make each selection of rows slow, and only worked examples read them.
WRITTEN_OUT = ("prompt", "gold", "completion", "token_log_mass", "init_token_log_mass")
#: Columns that are added here. MEASURED and LOGGED are the others, those of the files that stages write
#: (``measure.SCHEMA``, ``metric_log.SCHEMA``).
_OF_INIT = {"q": "init_q", "token_log_mass": "init_token_log_mass"}
_THEORY = ("fixed_point", "highest_fixed_point", "beyond_theory")
_ADDED = {*STAGE_COLUMNS, TEMPLATE, "copied", "q", *_OF_INIT.values(), *_THEORY, *(f"pass_at_{k}" for k in PASS_AT)}
MEASURED, LOGGED = (pa.schema([column for column in whole if column.name not in _ADDED]) for whole in (RESULTS, CURVES))
#: By how much rounding may lift a log-probability above 0.
ROUNDING = 1e-3


def settings(stage: Stage, plan: Plan) -> dict[str, Any]:
    """Return the values of ``STAGE_COLUMNS`` for a training stage of a plan."""
    root = stage.root
    return {
        "stage_id": stage.id,
        "kind": stage.kind,
        "label": plan.labelled(stage),
        "init_id": stage.parent.id if stage.parent else None,
        "task": root.task.label,
        "exact": root.task.unique,
        "source": getattr(root.decoder, "source", None),
        "layers": root.decoder.layers,
        "parameters": root.parameters,
        "ood_ratio": getattr(root, "ood_ratio", None),
        "seed": stage.chain_seed,
        **{name: getattr(stage, name, None) for name in ("prompt_role", "kl_beta", "group_size", "steps")},
        "condition": plan.condition_names[stage.id],
    }


def results(plan: Plan, store: Store) -> pd.DataFrame:
    """Return the rows of ``RESULTS`` for every finished measurement of the plan, in the plan's order, with a further
    column for each other setting in which stages of the plan differ, such as ``grpo.group_size``."""
    frames: dict[str, pd.DataFrame] = {}
    subjects: dict[str, Stage] = {}
    varies = varying(plan.trained)
    measurements = {stage.id: stage for stage in plan.stages if stage.pool == "measure" and stage.id in plan.finished}
    for stage_id, frame in _all_measured(store, measurements):
        stage = measurements[stage_id]
        subjects[stage.subject.id] = stage.subject
        frames[stage.subject.id] = with_pass_at_k(with_copied(frame, stage))
    if not frames:
        return _in_pandas(RESULTS.empty_table())
    about = [settings(subject, plan) | varied(subject, varies) for subject in subjects.values()]
    rows = with_fixed_points(with_init(joined(about, list(frames.values()))), subjects)
    rows = _typed(rows, _with_varied(RESULTS, about))
    counts = [name for name in rows.columns.difference(RESULTS.names) if _whole(rows[name])]
    return rows.astype(dict.fromkeys(counts, "Int64"))


def without_texts(results: pd.DataFrame) -> pd.DataFrame:
    """Return results without ``WRITTEN_OUT``."""
    return results.drop(columns=list(WRITTEN_OUT))


def measured(store: Store, stage_id: str) -> pd.DataFrame:
    """Return the rows of one finished measurement, with ``q``. Raises StoreError on a table that is not valid."""
    ((_, frame),) = _all_measured(store, [stage_id])
    return frame


def _all_measured(store: Store, stage_ids: Iterable[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    for stage_id, frame in _read(store, stage_ids, "results.parquet", MEASURED, may_have=[RESULTS.field(TEMPLATE)]):
        yield stage_id, frame.assign(q=np.exp(frame["log_mass"].clip(upper=0)))


def to_arrow(results: pd.DataFrame) -> pa.Table:
    """Return ``results`` as a table to store: the columns of ``RESULTS``, then those of settings that vary."""
    lists = [column.name for column in RESULTS if column.type == TOKENS]
    varied_columns = pa.Schema.from_pandas(results.drop(columns=RESULTS.names), preserve_index=False)
    schema = pa.schema([*RESULTS, *varied_columns])
    plain = pa.schema([column for column in schema if column.name not in lists])
    stored = pa.Table.from_pandas(results.drop(columns=lists), plain, preserve_index=False)
    # One by one, because pandas cannot read the metadata that ``from_pandas`` writes about such columns.
    for name in lists:
        stored = stored.add_column(
            schema.get_field_index(name), name, pa.chunked_array(pa.array(results[name]), TOKENS)
        )
    return stored


def joined(about: Sequence[Mapping[str, Any]], frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all frames, each with the columns that ``about`` has for its frame, in the same order."""
    rows = pd.concat(frames, ignore_index=True)
    frame_of_row = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
    return pd.concat([pd.DataFrame(about).take(frame_of_row).reset_index(drop=True), rows], axis=1)


def _with_varied(schema: pa.Schema, about: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """Return the schema with a column for each further setting of some stages, of the type of its values."""
    values: dict[str, list[Any]] = {}
    for settings_of_stage in about:
        for name, value in settings_of_stage.items():
            if name not in schema.names:
                values.setdefault(name, []).append(value)
    for name, found in values.items():
        schema = schema.append(pa.field(name, pa.array(found, from_pandas=True).type))
    return schema


def _whole(values: pd.Series) -> bool:
    """Return whether a column holds whole numbers, which pandas turns into floats if some rows have none."""
    known = values.dropna()
    numbers = pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known)
    return numbers and bool((known % 1 == 0).all())


def with_init(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of stages with the masses that the init of each, if its rows are here, gave to the same prompts."""
    keys = ["cell", "prompt_index"]
    before = rows[["stage_id", *keys, *_OF_INIT]].rename(columns={"stage_id": "init_id"} | _OF_INIT)
    return rows.merge(before, on=["init_id", *keys], how="left", validate="many_to_one")


def with_fixed_points(rows: pd.DataFrame, stages: Mapping[str, Stage]) -> pd.DataFrame:
    """Return rows, after ``with_init``, with the columns of the theory of GRPO as it is run. stages: by their ids."""
    reasons = {stage_id: beyond_theory(stage) for stage_id, stage in stages.items()}
    rows = rows.assign(fixed_point=np.nan, highest_fixed_point=np.nan, beyond_theory=rows["stage_id"].map(reasons))
    alike: dict[tuple[Any, ...], list[GRPO]] = {}  # stages with the same theory, so that each is computed once
    for stage_id, stage in stages.items():
        if isinstance(stage, GRPO) and not reasons[stage_id]:
            alike.setdefault((stage.kl_in, stage.kl_beta, stage.advantage, stage.group_size), []).append(stage)
    for some in alike.values():
        here = rows["init_token_log_mass"].notna() & rows["stage_id"].isin([stage.id for stage in some])
        if here.any():
            found = fixed_points(some[0], _padded(rows.loc[here, "init_token_log_mass"]))
            rows.loc[here, ["fixed_point", "highest_fixed_point"]] = np.stack([found.lowest_N, found.highest_N], axis=1)
    return rows


def _padded(lists: pd.Series) -> np.ndarray:
    """Return lists of numbers as the rows of a matrix, with 0 behind the end of shorter ones."""
    whole: Any = pa.chunked_array(pa.array(lists)).combine_chunks()
    row_of_number = whole.value_parent_indices().to_numpy()
    lengths = np.bincount(row_of_number, minlength=len(whole))
    matrix = np.zeros((len(whole), lengths.max(initial=0)))
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = whole.flatten().to_numpy(zero_copy_only=False)
    return matrix


def with_pass_at_k(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one stage with their ``pass_at_k`` columns."""
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
    """Return the rows of ``CURVES`` for every finished training stage of the plan."""
    trained = {stage.id: stage for stage in plan.trained if stage.id in plan.finished}
    found = dict(_read(store, trained, "metrics.parquet", LOGGED))
    if not found:
        return _in_pandas(CURVES.empty_table())
    about = [settings(trained[stage_id], plan) for stage_id in found]
    return _typed(joined(about, list(found.values())), CURVES)


def _read(
    store: Store, stage_ids: Iterable[str], name: str, schema: pa.Schema, may_have: Sequence[pa.Field] = ()
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the table that each stage wrote, with the stage's id and with those of ``may_have`` that it has. Raises
    StoreError with the first problem in one."""
    for stage_id, found in store.tables(stage_ids, name):
        columns = pa.schema([*schema, *(column for column in may_have if column.name in found.schema.names)])
        if problem := next(_problems(found, columns), None):
            raise StoreError(f"{store.url}/stages/{stage_id}/{name} {problem}")
        yield stage_id, _in_pandas(found.select(columns.names))


def _in_pandas(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(ignore_metadata=True, types_mapper={TOKENS: pd.ArrowDtype(TOKENS)}.get)


def _problems(found: pa.Table, schema: pa.Schema) -> Iterator[str]:
    """Yield the problems of a table. Each check relies on those before it."""
    for column in schema:
        at = found.schema.get_field_index(column.name)  # -1 also where there are two of them
        if at < 0:
            yield f"has not exactly one column {column.name}"
        if (kind := found.schema.field(at).type) != column.type:
            yield f"has a column {column.name} of type {kind} instead of {column.type}"
        if found.column(at).null_count or (column.type == pa.float64() and not np.isfinite(found.column(at)).all()):
            yield f"has a row whose {column.name} is empty or not finite"
    if "log_mass" in schema.names:
        rows = _in_pandas(found.select(schema.names))
        counts = rows[["sampled", "answer_correct", "trace_correct"]]
        if rows.empty:
            yield "has no rows"
        if rows.duplicated(["cell", "prompt_index"]).any():
            yield "has several rows with the same cell and prompt_index"
        if rows["log_mass"].max() > ROUNDING:
            yield f"has a log_mass of {rows['log_mass'].max():g}, which is above 0"
        if not np.allclose(_sums(found.column("token_log_mass")), rows["log_mass"], atol=ROUNDING):
            yield "has a row whose token_log_mass does not add up to its log_mass"
        if counts.lt(0).any(axis=None) or counts.gt(rows["sampled"], axis=0).any(axis=None):
            yield "has a row whose answer_correct or trace_correct is not between 0 and sampled"


def _sums(lists: pa.ChunkedArray) -> np.ndarray:
    """Return the sum of each list; NaN for one with an empty number in it."""
    whole: Any = lists.combine_chunks()
    values = whole.flatten().to_numpy(zero_copy_only=False)
    return np.bincount(whole.value_parent_indices(), weights=values, minlength=len(whole))


def _typed(rows: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Return the columns of a schema, each of the type that it says, also where a setting applies to no stage."""
    rows = rows.reindex(columns=schema.names)
    return _in_pandas(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))
