"""The report of a study: one page, its figures and its tables, in a local folder.

``write`` makes everything from a plan and a store, from whatever is finished:

    results.parquet            one row a prompt of a measured stage: table.RESULTS
    summary.csv                one row a measured stage and cell
    claims.csv                 the paper's claims, with numbers and verdicts
    report/index.html          the page; images are inside, so that it can be sent by itself
    report/figure-N.png .csv   each figure, and exactly the data it shows
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rayexp.report import claims, figures, table
from rayexp.report.arms import interval, mass_name
from rayexp.report.drawing import DPI, Drawing
from rayexp.spec import Pretrain, Stage, one_line
from rayexp.store import DamagedError, Store, StoreError
from rayexp.sweep.plan import Plan
from rayexp.world import vocabulary

KINDS = ("pretrain", "sft", "grpo", "evaluate")
#: Columns of ``table.STAGE_COLUMNS`` that summary.csv repeats for each cell.
SUMMARY_STAGE = ["stage_id", "label", "kind", "axis", "layers", "ood_ratio", "seed", "prompts", "kl_beta"]


def write(plan: Plan, store: Store, folder: Path) -> Path:
    """Write the report of what is finished of a plan into a local folder. Returns the path of the page."""
    results, curves = table.results(plan, store), table.curves(plan, store)
    drawn = figures.drawings(results, curves)
    findings = claims.claims(results)

    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(results, table.RESULTS, preserve_index=False), folder / "results.parquet")
    summary(results).to_csv(folder / "summary.csv", index=False)
    findings.to_csv(folder / "claims.csv", index=False)
    images = []
    for number, drawing in enumerate(drawn, start=1):
        images.append(_png(drawing))
        (report / f"figure-{number}.png").write_bytes(images[-1])
        drawing.data.to_csv(report / f"figure-{number}.csv", index=False)
    page = report / "index.html"
    page.write_text(
        _template().render(
            study=plan.study,
            axis=plan.stages[0].root.world.axis if plan.stages else "",
            mass=mass_name(results),
            stages=_stage_counts(plan),
            finished=len(plan.finished),
            planned=len(plan.stages),
            claims=_by_claim(findings),
            figures=[
                {"drawing": drawing, "png": base64.b64encode(image).decode(), "size": _size(drawing)}
                for drawing, image in zip(drawn, images, strict=True)
            ],
            design=_design(plan),
            provenance=provenance(plan, store),
            settings=settings(plan.stages),
        ),
        encoding="utf-8",
    )
    return page


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each stage, role and cell: settings, mean q with its interval over prompts, greedy accuracy, n.

    sampled_accuracy: share of sampled completions with the right answer, NaN where none were drawn.
    """
    rows = []
    for (_, role, cell), group in results.groupby(["stage_id", "role", "cell"], sort=False):
        mass, sampled = interval(group, "q"), group["sampled"].sum()
        rows.append(
            group.iloc[0][SUMMARY_STAGE].to_dict()
            | {"role": role, "cell": cell, "mean_q": mass.mean, "q_low": mass.low, "q_high": mass.high}
            | {
                "greedy_accuracy": group["greedy_correct"].mean(),
                "sampled_accuracy": group["answer_correct"].sum() / sampled if sampled else np.nan,
                "n_prompts": mass.prompts,
            }
        )
    columns = [
        *SUMMARY_STAGE,
        "role",
        "cell",
        "mean_q",
        "q_low",
        "q_high",
        "greedy_accuracy",
        "sampled_accuracy",
        "n_prompts",
    ]
    return pd.DataFrame(rows, columns=columns)


def provenance(plan: Plan, store: Store) -> dict[str, Any]:
    """What the finished stages wrote about where, when and with what they were run.

    facts: the distinct values of each name. durations: seconds by kind of stage. runs: one a stage. unread: number of
    stages whose record is missing or is not one.
    """
    facts: dict[str, dict[str, None]] = {}
    runs, unread = [], 0
    for stage in plan.stages:
        if stage.id not in plan.finished:
            continue
        try:
            record = store.provenance(stage.id)
            found, started, duration_s = _facts(record), str(record.get("started", "")), float(record["duration_s"])
        except DamagedError:
            raise
        except (StoreError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unread += 1
            continue
        for name, value in found.items():
            facts.setdefault(name, {})[value] = None
        about = {"id": stage.id, "label": stage.label, "host": found["host"], "started": one_line(started)}
        runs.append({**about, "duration_s": duration_s})
    distinct = {name: list(values) for name, values in facts.items()}
    return {"facts": distinct, "durations": _durations(runs), "runs": runs, "unread": unread}


def _facts(record: dict[str, Any]) -> dict[str, str]:
    """What a stage was run with. Raises KeyError, TypeError or ValueError on what is not a record."""
    git, commit = record["git"], "not from a checkout"
    if git:
        commit = git["commit"] + (" and uncommitted changes" if git["changed"] else "")
    about = {"host": record["host"], "machine": record["machine"], "commit": commit, "python": record["python"]}
    return {one_line(str(name)): one_line(str(value)) for name, value in {**about, **record["packages"]}.items()}


def _durations(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number of stages, median and sum of seconds by kind; wall-clock time of each stage's last attempt."""
    seconds = {kind: [run["duration_s"] for run in runs if run["id"].startswith(f"{kind}-")] for kind in KINDS}
    return [
        {"kind": kind, "n": len(values), "median_s": float(np.median(values)), "sum_s": float(np.sum(values))}
        for kind, values in seconds.items()
        if values
    ]


def settings(stages: Sequence[Stage]) -> list[tuple[str, str, str]]:
    """Kind, field and distinct values of every setting of the planned stages; a decoder's count as pretraining's."""
    distinct: dict[tuple[str, str], dict[str, None]] = {}
    for stage in stages:
        kind = stage.id.partition("-")[0]
        for field, value in _flat(stage.model_dump(mode="json", exclude={"init", "kind"})):
            distinct.setdefault((kind, field), {})[str(value)] = None
    return [(kind, field, ", ".join(values)) for (kind, field), values in distinct.items()]


def _flat(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested settings with dotted names."""
    return [
        leaf
        for name, value in fields.items()
        for leaf in (_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)])
    ]


def _design(plan: Plan) -> dict[str, list[str]]:
    """The distinct seeds, OOD ratios and decoders of a plan, for people."""
    roots = [stage for stage in plan.stages if isinstance(stage, Pretrain)]
    decoders = [
        f"{root.decoder.parameters(vocabulary.SIZE):,} parameters ("
        + ", ".join(f"{name} {value}" for name, value in root.decoder.model_dump().items())
        + ")"
        for root in roots
    ]
    seeds, ratios = ([f"{getattr(root, name):g}" for root in roots] for name in ("seed", "ood_ratio"))
    distinct = {"seed": seeds, "OOD ratio": ratios, "decoder": decoders}
    return {name: list(dict.fromkeys(values)) for name, values in distinct.items()}


def _stage_counts(plan: Plan) -> list[dict[str, Any]]:
    counts = []
    for kind in KINDS:
        ids = {stage.id for stage in plan.stages if stage.id.startswith(f"{kind}-")}
        if ids:
            counts.append({"kind": kind, "planned": len(ids), "finished": len(ids & plan.finished)})
    return counts


def _by_claim(findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Each claim with its findings and how often each verdict was reached."""
    return [
        {
            "id": rows["claim"].iloc[0],
            "title": rows["title"].iloc[0],
            "prediction": rows["prediction"].iloc[0],
            "verdicts": rows["verdict"].value_counts().to_dict(),
            "findings": rows.to_dict("records"),
        }
        for _, rows in findings.groupby("claim")
    ]


def _png(drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _size(drawing: Drawing) -> tuple[int, int]:
    """Width and height in pixels, so that the page does not jump while it loads."""
    width, height = drawing.figure.get_size_inches() * DPI
    return int(width), int(height)


def _template():
    """The page. Everything from the store is text to it: autoescape is on, and nothing is marked as safe."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
