"""The report of a study: one page, its figures and its tables, in a local folder.

``write`` makes everything from a plan and a store, from whatever is finished:

    results.parquet            one row a prompt of a measured stage: table.RESULTS
    summary.csv                one row a measured stage and cell
    templates.csv              one row a measured stage, cell and template, where the task has templates
    copies.csv                 one row a measured stage, cell and half, where pretraining had copies of test items
    claims.csv                 the paper's claims, with numbers and verdicts
    objections.csv             each condition beside the control, with its verdict, where a study has conditions
    report/index.html          the page; figures are inside, so that it can be sent by itself
    report/figure-N.png .csv   each figure, and exactly the data it shows
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rayexp.evaluation.metrics import Interval, bootstrap_each, wilson
from rayexp.models.config import PretrainedDecoder
from rayexp.parts import own_modules
from rayexp.reports import claims, copies, table
from rayexp.reports.arms import mass_name
from rayexp.reports.checks import SMALL_GAIN
from rayexp.reports.copies import held_out
from rayexp.reports.examples import RULE, choices, examples
from rayexp.reports.objections import SAME_GAIN, objections
from rayexp.reports.pictures import Picture, pictures, scripted
from rayexp.reports.power import detectable_gains
from rayexp.reports.provenance import design, provenance, settings, stage_counts
from rayexp.stages import Pretrained, Stage
from rayexp.store.artifacts import Store
from rayexp.store.provenance import code_here
from rayexp.studies.conditions import CONTROL
from rayexp.sweep.plan import Plan
from rayexp.tasks.base import TEMPLATE

#: Columns of ``table.STAGE_COLUMNS`` that summary.csv repeats for each cell.
SUMMARY_STAGE = [
    "stage_id",
    "label",
    "kind",
    "task",
    "layers",
    "ood_ratio",
    "seed",
    "prompt_role",
    "kl_beta",
    "condition",
]
SUMMARY_VALUES = [
    *("mean_q", "q_low", "q_high", "greedy_accuracy"),
    *("sampled_accuracy", "sampled_low", "sampled_high", "n_prompts"),
]
#: In the place of the share of right answers among sampled ones, where none were drawn.
UNSAMPLED = Interval(np.nan, np.nan, np.nan, 1, 0)


@dataclass(frozen=True)
class Report:
    """The page of a report, and a sentence about each figure that could not be drawn."""

    page: Path
    undrawn: list[str]


def write(plan: Plan, store: Store, folder: Path) -> Report:
    """Write the report of what is finished of a plan into a local folder: tables first, then figures and the page."""
    measured, curves = table.results(plan, store), table.curves(plan, store)
    results, pairs = held_out(measured), copies.pairs(measured)
    decided = objections(plan, results)
    # The paper's claims are about GRPO as in the paper; other conditions are judged under objections.
    shown, curves = _of_control(plan, results), _of_control(plan, curves)
    numbers = table.without_texts(shown)
    findings = claims.claims(numbers, curves, plan.looks)

    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.to_arrow(measured), folder / "results.parquet")
    summary(table.without_texts(results)).to_csv(folder / "summary.csv", index=False)
    findings.to_csv(folder / "claims.csv", index=False)
    for column, name in (("copied", "copies.csv"), (TEMPLATE, "templates.csv")):
        if len(known := measured[measured[column].notna()]):
            summary(table.without_texts(known), column).to_csv(folder / name, index=False)
    tables = {"copies": table.without_texts(pairs), "results": numbers, "curves": curves}
    if plan.conditions:
        decided.to_csv(folder / "objections.csv", index=False)
        tables["objections"] = decided
    (drawn, script), worked = scripted(pictures(tables, report)), examples(shown)
    page = report / "index.html"
    page.write_text(
        _template().render(
            study=plan.study,
            trained=how_trained(plan.stages),
            mass=mass_name(shown),
            stages=stage_counts(plan),
            finished=len(plan.finished),
            planned=len(plan.stages) + len(plan.unread),
            objections=_by_condition(decided),
            same_gain=SAME_GAIN,
            small_gain=SMALL_GAIN,
            looks=plan.looks,
            power=detectable_gains(numbers),
            claims=_by_claim(findings),
            tests=int(findings["p"].notna().sum()),
            figures=drawn,
            script=script,
            script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
            rule=RULE,
            examples=worked,
            asked=choices(worked),
            design=design(plan.stages),
            provenance=provenance(plan, store),
            code_here=code_here(own_modules(plan.stages)),
            settings=settings(plan.stages),
        ),
        encoding="utf-8",
    )
    return Report(page, [_undrawn(number, one) for number, one in enumerate(drawn, start=1) if one.why])


def _undrawn(number: int, picture: Picture) -> str:
    return f"figure {number} ({picture.title}) could not be drawn: {picture.why}"


def how_trained(stages: Sequence[Stage]) -> str:
    """Return how the decoders of a study were trained, as the beginning of a sentence."""
    task = "” and “".join(dict.fromkeys(stage.root.task.label for stage in stages))
    roots = {stage.root.id: stage.root for stage in stages}.values()
    others = dict.fromkeys(each.decoder.source for each in roots if isinstance(each.decoder, PretrainedDecoder))
    models, then = " and ".join(others), "fine-tuned on ID samples, then trained by GRPO"
    if all(isinstance(root, Pretrained) for root in roots):
        return f"{models}, which others have trained, was trained by GRPO on the task “{task}”"
    start = f"pretrained further from {models}" if others else "pretrained from scratch"
    return f"Decoders were {start} on ID and OOD samples of the task “{task}” at known ratios, {then}"


def summary(results: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Return one row for each stage, role and cell: settings, mean q with its interval over prompts, greedy accuracy,
    n. by: further columns to group by.

    sampled_accuracy: share of sampled completions with the right answer, with its Wilson interval, NaN where none were
    drawn.
    """
    groups = results.groupby(keys := ["stage_id", "role", "cell", *by], sort=False)
    rows = groups[[column for column in SUMMARY_STAGE if column not in keys]].first()
    rows["mean_q"], rows["greedy_accuracy"] = groups["q"].mean(), groups["greedy_correct"].mean()
    rows[["q_low", "q_high"]] = bootstrap_each([q.to_numpy(dtype=float) for _, q in groups["q"]])
    counts = zip(groups["answer_correct"].sum(), groups["sampled"].sum(), strict=True)
    sampled = [wilson(int(right), int(drawn)) if drawn else UNSAMPLED for right, drawn in counts]
    for name, value in (("sampled_accuracy", "mean"), ("sampled_low", "low"), ("sampled_high", "high")):
        rows[name] = [getattr(each, value) for each in sampled]
    rows["n_prompts"] = groups.size()
    return rows.reset_index()[[*SUMMARY_STAGE, "role", "cell", *by, *SUMMARY_VALUES]]


def _of_control(plan: Plan, results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the control's chains; of a study without conditions, all."""
    ends = [end for each in plan.conditions if each.name == CONTROL for end in each.ends]
    chains = {stage.id for end in ends for stage in end.lineage}
    return results[results["stage_id"].isin(chains)] if plan.conditions else results


def _by_condition(decided: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each condition with a finding for every task and ratio."""
    notes = decided["detectable"].map(lambda least: "" if pd.isna(least) else f"Detectable: {least:.2g}.")
    noted = decided.assign(setting=decided["place"], note=notes)
    return [
        {
            **{name: rows[name].iloc[0] for name in ("condition", "objection", "source", "predicts", "k")},
            "verdicts": rows["verdict"].value_counts().to_dict(),
            "findings": rows.to_dict("records"),
        }
        for _, rows in noted.groupby("condition", sort=False)
    ]


def _by_claim(findings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each claim with its findings and the count of each verdict."""
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


def _template():
    """Return the template of the page. Everything from the store is escaped; only the script is marked as safe."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
