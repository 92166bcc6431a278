"""The project as a library: plan an experiment, run its missing stages, read its results.

The command ``rayexp`` calls these functions and turns their outcome into exit codes. They print their progress. They
start Ray only to run something, and use an existing connection to Ray.
"""

import dataclasses
import html
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rayexp.config import RunConfig
from rayexp.errors import StageError
from rayexp.experiment import Experiment
from rayexp.stages import Stage
from rayexp.store.artifacts import FAILURE, Store, StoreError
from rayexp.store.filesystem import resolved
from rayexp.store.garbage import alone
from rayexp.store.index import StoreIndex
from rayexp.store.probe import require_seen_by_others, require_shareable
from rayexp.store.provenance import without_secrets
from rayexp.studies import Wanted
from rayexp.studies.looks import Place
from rayexp.studies.ratios import Search
from rayexp.sweep import force, placement, preflight, trackers
from rayexp.sweep import notify as news
from rayexp.sweep.plan import Plan
from rayexp.sweep.preview import other_code
from rayexp.sweep.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from rayexp.reports.page import Report

NO_TRACKERS = trackers.Trackers()
#: An experiment, or a user's own stages or conditions, which need a name.
Asked = Experiment | Iterable[Wanted]


@dataclasses.dataclass(frozen=True)
class Job:
    """A plan in a study of a store. again: finished stages that are made again. messages: lines for the user
    about the results that decided the plan."""

    wanted: Asked
    study: Study
    plan: Plan
    run_config: RunConfig
    again: tuple[Stage, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def store(self) -> Store:
        return self.study.store

    def summary(self) -> str:
        """Return lines on the stages to run, and on anything noteworthy about the finished ones."""
        index = StoreIndex(self.store)
        about_plan = [self.plan.summary(), self.study.addition(self.plan), *self.messages]
        about_finished = [*other_code(self.plan, index), *force.beyond(self.again, self.plan, index)]
        return "\n".join(filter(None, [*about_plan, *about_finished]))


def plan(wanted: Asked, store: str = "runs", name: str | None = None) -> Plan:
    """Return the stages of an experiment, and which of them a store has. Start and change nothing.

    wanted: an Experiment, or stages or conditions of your own with a ``name``. store: a folder or fsspec URL. Raises
    ValueError, ValidationError or RefusedError, with one sentence, if the plan is not possible.
    """
    return prepare(wanted, RunConfig(store=store), name).plan


def run(
    wanted: Asked,
    run_config: RunConfig | None = None,
    name: str | None = None,
    *,
    force: Sequence[str] = (),
    repair: bool = False,
    fail_fast: bool = False,
    loggers: Sequence[str] = (),
    notify: str | None = None,
) -> "pd.DataFrame":
    """Run the missing stages of an experiment on Ray, write its report, and return its results, one row a prompt.

    wanted: an Experiment, or stages or conditions of your own with a ``name``. The other arguments are the options of
    ``rayexp run``. Raises as ``plan`` does. If a stage failed, raises StageError after all others are done.
    """
    news.require(notify)
    trackers.require(loggers)
    first = prepare(wanted, run_config or RunConfig(), name, force)
    if repair:
        unpublish_damaged(first)
        first = prepare(wanted, first.run_config, name, force)
    job, failed = first, []
    with (
        news.announced(notify, news.Course(first.study, first.plan)) as course,
        open_trackers(first, loggers) as tracked,
    ):
        for job in rounds(first):
            print(job.summary(), flush=True)
            job = begin(job)
            course.plan = job.plan
            if job.plan.trials:
                connect(job)
                failed = execute(ready(job), tracked, fail_fast)
            if failed:
                break
        course.verdicts = write_report(job, tracked).verdicts
        if failed:
            raise StageError("\n".join(failed))
    return results(job.study.name, job.store.url)


def results(study: Experiment | str, store: str = "runs") -> "pd.DataFrame":
    """Return the results of a study in a store, one row a prompt; docs/results.md has the columns.

    Raises StoreError if there are none.
    """
    import pandas as pd

    return pd.read_parquet(io.BytesIO(_read(study, store, "results.parquet")))


@dataclasses.dataclass(frozen=True)
class Chart:
    """An interactive chart for a notebook: a separate page, in a frame whose script can't access the notebook."""

    page: str = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        frame = 'sandbox="allow-scripts" style="border: 0; width: 100%; height: 460px"'
        return f'<iframe {frame} srcdoc="{html.escape(self.page)}"></iframe>'


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a report, which a notebook shows. data: its numbers. chart: the interactive chart of the report's
    page, as Vega-Lite JSON; empty if there is none."""

    name: str
    png: bytes = dataclasses.field(repr=False)
    data: "pd.DataFrame" = dataclasses.field(repr=False)
    chart: str = dataclasses.field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png

    def explore(self) -> Chart:
        """Return the figure as an interactive chart. Raises ValueError if the report's page has none."""
        from rayexp.reports.explore import alone

        if not self.chart:
            raise ValueError(f"{self.name} has no chart to explore; the report's page says why")
        return Chart(alone(self.chart, self.name))


def figures(study: Experiment | str, store: str = "runs") -> list[Figure]:
    """Return the figures of a study's report, in its order. Raises StoreError if it has none."""
    import pandas as pd

    from rayexp.reports.explore import charts

    found = charts(_read(study, store, "report/index.html").decode())
    files, folder = Store(store).files, f"studies/{_folder(study)}/report"
    drawn = [Path(name).stem for name in files.names(folder) if name.endswith(".png")]

    def figure(name: str) -> Figure:
        data = pd.read_csv(io.BytesIO(files.read(f"{folder}/{name}.csv")))
        return Figure(name, files.read(f"{folder}/{name}.png"), data, found.get(name, ""))

    return [figure(name) for name in sorted(drawn, key=lambda name: (len(name), name))]


def _read(study: Experiment | str, store: str, name: str) -> bytes:
    index = StoreIndex(Store(store))
    index.require_there()
    try:
        return index.store.files.read(f"studies/{_folder(study)}/{name}")
    except FileNotFoundError:
        index.about(_folder(study))  # raises if there is no such study
        raise StoreError(f"study={_folder(study)!r} has no {name} in the store {store} yet") from None


def _folder(study: Experiment | str) -> str:
    return study.folder if isinstance(study, Experiment) else study


# The parts of a run


def prepare(wanted: Asked, run_config: RunConfig, name: str | None = None, again: Sequence[str] = ()) -> Job:
    """Plan an experiment against the finished stages of its store. again: names of stages to make again.

    Raises ValueError, ValidationError or RefusedError if it cannot begin.
    """
    if os.path.expanduser("~") == "~":  # Ray expands ~ when it is imported, and would fail later
        raise ValueError(
            "HOME is not set, and this user has no entry in /etc/passwd; set HOME to a folder that you can write"
        )
    run_config = run_config.model_copy(update={"store": resolved(run_config.store)})
    store = Store.of(run_config)
    require_seen_by_others(store.files)
    if isinstance(wanted, Experiment):
        wanted = wanted if name is None else Experiment.model_validate(wanted.model_dump() | {"name": name})
        study = Study(store, wanted.folder, wanted.study, wanted.scale, wanted.axes)
        found = wanted.wanted(partial(measured, store), partial(undecided, store))
        looks = len(wanted.looks)
    elif name is None:
        raise ValueError("name is missing; stages of your own need one")
    else:
        wanted = list(wanted)
        study, found = Study(store, Experiment(name=name).folder, "own stages", "own"), Search(wanted)
        looks = 1
    whole = _planned(study.study, found.wanted, store, looks)
    anew = force.named(again, whole)
    left = dataclasses.replace(whole, finished=whole.finished - {stage.id for stage in anew})
    study.require_one(left)
    preflight.require_own_parts(left)
    return Job(wanted, study, left, run_config, anew, found.messages)


def _planned(study: str, wanted: Iterable[Wanted], store: Store, looks: int) -> Plan:
    """Return the plan of a study. Look at no other stages of the store than those of the plan."""
    plan = Plan.of(study, wanted, (), looks=looks)
    return dataclasses.replace(plan, finished=frozenset(store.finished_ids([stage.id for stage in plan.stages])))


def rounds(job: Job) -> Iterator[Job]:
    """Yield a job. After each job has run, yield the next one, until the experiment wants no new stages."""
    yield job
    while isinstance(job.wanted, Experiment) and job.wanted.adaptive:
        before, job = job, prepare(job.wanted, job.run_config, job.study.name)
        if job.plan.labels.keys() == before.plan.labels.keys():
            return
        yield job


def measured(store: Store, stage: Stage) -> "pd.DataFrame | None":
    """Return the rows of a measurement, with ``q``; None if it is not finished."""
    from rayexp.reports import table

    return table.measured(store, stage.id) if store.finished(stage.id) else None


def undecided(store: Store, wanted: Sequence[Wanted], looks: int) -> "Collection[Place] | None":
    """Return the places at which a verdict is undecided; None while not all stages are finished."""
    plan = _planned("", wanted, store, looks)
    if plan.to_run:
        return None
    from rayexp.reports.undecided import places

    return places(plan, store)


def unpublish_damaged(job: Job) -> None:
    """Remove the finished stages of the plan that differ from their manifests, so that they are run again."""
    for stage_id, problems in job.store.damaged(job.plan.finished).items():
        print(f"damaged: {job.plan.labels[stage_id]}: {'; '.join(problems)}", flush=True)
        job.store.unpublish(stage_id)


def begin(job: Job) -> Job:
    """Record the plan in the store. Return the job, updated: stages that were removed meanwhile are run again.

    Raises StoreError if concurrent sweeps could not share the store, and RefusedError if the study's name is taken.
    """
    require_shareable(job.store.files)
    with alone(job.store.files):
        job.study.add(job.plan)
        finished = job.store.finished_ids(job.plan.finished)
    if gone := len(job.plan.finished - finished):
        print(f"finished stages that were removed since planning, and will run again: {gone}", flush=True)
    return dataclasses.replace(job, plan=dataclasses.replace(job.plan, finished=frozenset(finished)))


def connect(job: Job) -> None:
    """Connect to the cluster of the Ray job, of RAY_ADDRESS or of this process, or start one. Print the address of its
    dashboard."""
    from rayexp.distributed import runtime  # Ray takes seconds to import; a plan or a refusal needs none

    counts = {"stages": str(len(job.plan.stages)), "stages_to_run": str(len(job.plan.to_run))}
    about = {"study": job.study.name, "store": without_secrets([job.store.url])[0], **counts}
    cluster = runtime.connect(metadata=about)
    entry = f" (enter the token in {cluster['token']})" if cluster["token"] else ""
    print(f"Ray dashboard: http://{cluster['dashboard']}{entry}", flush=True)


def ready(job: Job) -> Job:
    """Fill in the job's settings for the cluster, and move the stages to make again aside. Return the job.

    Raises RefusedError, before anything is moved, if the cluster can't run the job.
    """
    from rayexp.distributed import sharing

    nodes = preflight.capacity()
    run_config = job.run_config.resolve(num_gpus=placement.total(nodes)["GPU"])
    preflight.require_software(job.plan, run_config)
    preflight.require_resources(job.plan, run_config, nodes)
    sharing.require_shared(job.store.files)
    aside = force.set_aside(job.again, job.plan, job.store)
    print(*aside, sep="\n", end="\n" * bool(aside), flush=True)
    return dataclasses.replace(job, run_config=run_config)


def open_trackers(job: Job, loggers: Sequence[str]) -> AbstractContextManager[trackers.Trackers]:
    """Open the trackers of a job, for its stages and its report. Raises ValueError if one can't be opened."""

    def results_of(measurement: Stage) -> dict[str, float]:
        from rayexp.reports import summary  # imports pandas, which a refusal does not need

        return summary.results_of(job.store, measurement)

    return trackers.opened(loggers, job.store, job.study.name, results_of)


def execute(job: Job, tracked: trackers.Trackers = NO_TRACKERS, fail_fast: bool = False) -> list[str]:
    """Run all remaining trials of a job that is ready. Return a line for each trial that did not succeed."""
    from rayexp.sweep import display, prometheus, scheduler
    from rayexp.sweep.cost import CostModel
    from rayexp.sweep.job_progress import JobProgress
    from rayexp.sweep.progress import Progress
    from rayexp.sweep.so_far import MeansSoFar

    estimates = CostModel.of(StoreIndex(job.store), job.run_config, job.plan.finished)
    at_once = preflight.concurrency(job.plan, job.run_config)
    progress = Progress(job.plan, lambda stage: estimates.cost(stage).seconds, at_once)
    with display.open_display(display.console(), progress) as view:
        means = MeansSoFar(job.plan, job.store)
        views = [view, prometheus.PrometheusExporter(progress, means, job.study.name), JobProgress(progress)]
        outcome = scheduler.run(job.plan, job.run_config, progress, views, tracked, fail_fast)
    return _unsuccessful(outcome.failed, outcome.blocked, job)


def _unsuccessful(failures: dict[str, str], blocked: Iterable[str], job: Job) -> list[str]:
    records = {trial: f"work/{trial}/{FAILURE}" for trial in failures}
    there = job.store.files.read_existing(list(records.values()))  # a process that never started leaves none
    details = {trial: f" (details: {job.store.url}/{path})" for trial, path in records.items() if path in there}
    labels = {trial.id: trial.label for trial in job.plan.trials}
    failed = [f"failed: {why}{details.get(trial, '')}" for trial, why in failures.items()]
    return failed + [f"not run, because another trial failed: {labels[trial]} ({trial})" for trial in sorted(blocked)]


class Written(NamedTuple):
    """The outcome of writing a report. undrawn: a sentence for each figure that could not be drawn; verdicts: a line
    for each claim and each objection."""

    undrawn: list[str]
    verdicts: list[str]


def write_report(job: Job, tracked: trackers.Trackers = NO_TRACKERS) -> Written:
    """Write the results table and the report of a study into the store. Print its verdicts and send them to the
    trackers. They cover all finished stages that were ever planned under the study's name."""
    from rayexp.reports import page, summary

    def make(whole: Plan, store: Store, folder: Path) -> tuple["Report", list[summary.Verdict]]:
        return page.write(whole, store, folder), list(summary.verdicts(folder))

    report, verdicts = job.study.write(job.plan, make)
    lines = [" | ".join(each) for each in verdicts]
    print("verdicts: claim | where | measured, with 95 % interval | verdict", *lines, sep="\n")
    tracked.write_study({each.about: f"{each.verdict}: {each.measured}" for each in verdicts})
    place = f"{job.store.url}/studies/{job.study.name}"
    print(f"results: {place}/results.parquet\nreport:  {place}/report/index.html")
    return Written(report.undrawn, lines)
