"""Plan a study, run what is missing of it on Ray, write its results and its report.

    rayexp run demo                                         the demo, on this machine
    rayexp plan depth --scale paper                         what a study would do
    ray job submit --working-dir . -- python jobs/sweep.py --study composition --store s3://bucket/study

Run again, it does what is left; when nothing is, it ends in seconds. Several may share a store at the same time. Exit
codes: 0 all done, 1 something failed, 2 refused before anything was started, 130 stopped (Ctrl-C, SIGTERM).
"""

import csv
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rayexp import terminal
from rayexp.cli.command import run_command, stopped_once, working
from rayexp.cli.study_args import StudyArgs
from rayexp.config import RunConfig
from rayexp.store.artifacts import FAILURE, Store
from rayexp.store.filesystem import resolved
from rayexp.store.index import StoreIndex
from rayexp.store.probe import require_seen_by_others, require_shareable
from rayexp.store.provenance import command_line, without_secrets
from rayexp.sweep import force, placement, preflight, trackers
from rayexp.sweep.plan import Plan
from rayexp.sweep.preview import ClusterResources, other_code, render_plan
from rayexp.sweep.study import Study

if TYPE_CHECKING:
    from rayexp.sweep.scheduler import Outcome  # imports Ray

#: The settings of ``RunConfig`` as options, without its limits: those are checked, and explained, by ``RunConfig``.
Options: Any = dataclasses.make_dataclass(
    "Options",
    [
        (
            name,
            Annotated[info.annotation, tyro.conf.arg(help=info.description)],
            dataclasses.field(default=info.default),
        )
        for name, info in RunConfig.model_fields.items()
        if name not in ("lease", "argv")
    ],
)


@dataclasses.dataclass(frozen=True)
class Sweep(StudyArgs):
    """Plan a study, run what is missing of it on Ray, write its results and its report."""

    name: str | None = None
    """Folder of its results in the store, below studies; by default study, scale, and what of the task is not usual.
    Asked for again under the same name with other seeds, ratios or betas, a study grows."""
    plan: bool = False
    """Print every stage with its state, its cost and what it is built on, and stop."""
    repair: bool = False
    """Read every finished artifact of the plan first, and make those again that are damaged."""
    force: tuple[str, ...] = ()
    """Make these stages again (id, beginning of one, or label), and all of the plan that is built on them. What the
    store has of them is moved to its folder replaced/."""
    fail_fast: bool = False
    """After a failure, stop."""
    loggers: tuple[str, ...] = ()
    """Tune's own loggers, beside the store: csv, json, tensorboard, wandb."""
    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = (  # pyright: ignore[reportInvalidTypeForm]
        dataclasses.field(default_factory=Options)
    )
    """Machines, workers and limits; nothing of this can change a result."""

    @property
    def study_name(self) -> str:
        return self.own_name if self.name is None else self.name

    def within(self, store: Store) -> Study:
        """Return the study as a store has it."""
        return Study(store, self.study_name, self.study, self.scale, self.axes)


DEFAULTS = Sweep()


def main(arguments: list[str] | None = None, defaults: Sweep = DEFAULTS) -> int:
    """Run the whole job; return the exit code."""
    return run_command(lambda: _sweep(parse_args(arguments, defaults, __doc__), command_line(arguments)))


def _sweep(sweep: Sweep, argv: tuple[str, ...]) -> int:
    try:
        require_home()
        run_config = make_run_config(sweep).model_copy(update={"argv": argv})
        trackers.require(sweep.loggers)
        store = Store.of(run_config)
        require_seen_by_others(store.files)
        study, plan = sweep.within(store), make_plan(sweep, store)
        study.require_one(plan)
        preflight.require_own_parts(plan)
        if sweep.repair and not sweep.plan:
            unpublish_damaged(plan, store)
            plan = make_plan(sweep, store)
        left = force.beyond(force.named(sweep.force, plan), plan, StoreIndex(store))
        said = [plan.summary(), study.said(plan), *other_code(plan, StoreIndex(store)), *left]
        print("\n".join(filter(None, said)), flush=True)
        if sweep.plan:
            print(f"\n{render_plan(plan, StoreIndex(store), run_config, machines(), terminal.terminal_width())}")
            return 0
        require_shareable(store.files)
        study.add(plan)
        failed = run(sweep, plan, run_config, store) if plan.trials else 0
        with working():
            undrawn = write_report(plan, study)
    except KeyboardInterrupt:
        begun = "; with --force it makes everything again that is named" if sweep.force else ""
        print(f"stopped; the same command goes on from here{begun}", file=sys.stderr)
        return 130
    return 1 if failed or undrawn else 0


def parse_args(arguments: list[str] | None, defaults: Sweep, description: str | None) -> Sweep:
    """Return the command line as a Sweep. Raises ValueError with one sentence."""
    sweep = terminal.parse_args(Sweep, arguments, default=defaults, description=description)
    if sweep.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", sweep.name):
        raise ValueError(f"name is {sweep.name!r}; allowed: up to 100 letters, digits, and _ . - after the first")
    return sweep


def make_run_config(sweep: Sweep) -> RunConfig:
    """Return how the stages are to be run. Raises ValidationError or ValueError on a setting it can't have."""
    return RunConfig.model_validate(dataclasses.asdict(sweep.options) | {"store": resolved(sweep.options.store)})


def require_home() -> None:
    """Raise ValueError where there is no home folder: Ray, which notes it when it is imported, would fail then."""
    if os.path.expanduser("~") == "~":
        raise ValueError(
            "HOME is not set, and this user has no entry in /etc/passwd; set HOME to a folder that can be written"
        )


def unpublish_damaged(plan: Plan, store: Store) -> None:
    """Take back finished stages of the plan that are not what their manifests say, so that they are run again."""
    for stage_id, problems in store.damaged(plan.finished).items():
        print(f"damaged: {plan.labels[stage_id]}: {'; '.join(problems)}", flush=True)
        store.unpublish(stage_id)


def make_plan(sweep: Sweep, store: Store) -> Plan:
    """Plan the study against what the store has finished. Raises ValueError on a setting it can't have."""
    plan = Plan.of(sweep.study, sweep.stages(), store.finished_ids())
    again = {stage.id for stage in force.named(sweep.force, plan)}
    return dataclasses.replace(plan, finished=plan.finished - again)


def machines() -> ClusterResources:
    """Return the machines of the cluster that RAY_ADDRESS names, else this machine, without a start of Ray."""
    if (address := os.environ.get("RAY_ADDRESS", "")) in ("", "local"):
        return ClusterResources.here()
    from rayexp.distributed import runtime

    runtime.connect()
    return ClusterResources(preflight.capacity(), f"the Ray cluster at {address}")


def run(sweep: Sweep, plan: Plan, run_config: RunConfig, store: Store) -> int:
    """Run the plan on the cluster. Return the number of trials that did not succeed."""
    # Ray takes seconds to import; a plan or a refusal needs none.
    from rayexp.distributed import runtime, sharing
    from rayexp.sweep import display, prometheus, scheduler
    from rayexp.sweep.cost import CostModel
    from rayexp.sweep.progress import Progress

    counts = {"stages": str(len(plan.stages)), "stages_to_run": str(len(plan.to_run))}
    with stopped_once():
        about = {"study": sweep.study_name, "store": without_secrets([store.url])[0], **counts}
        cluster = runtime.connect(metadata=about)
    nodes = preflight.capacity()
    run_config = run_config.resolve(num_gpus=placement.total(nodes)["GPU"])
    preflight.require_software(plan, run_config)
    preflight.require_resources(plan, run_config, nodes)
    sharing.require_shared(store.files)
    aside = force.set_aside(force.named(sweep.force, plan), plan, store)
    print(*aside, sep="\n", end="\n" * bool(aside), flush=True)
    asks = f", asks for the token in {cluster['token']}" if cluster["token"] else ""
    print(f"Ray dashboard: http://{cluster['dashboard']}{asks}", flush=True)
    estimates = CostModel.of(StoreIndex(store), run_config)
    at_once = preflight.concurrency(plan, run_config, nodes)
    progress = Progress(plan, lambda stage: estimates.cost(stage).seconds, at_once)
    with (
        working(*scheduler.WRAPPERS),
        trackers.opened(sweep.loggers, store, sweep.study_name) as opened,
        display.open_display(display.console(), progress) as view,
    ):
        views = [view, prometheus.PrometheusExporter(progress, sweep.study_name)]
        outcome = scheduler.run(plan, run_config, progress, views, opened, sweep.fail_fast)
    for line in _unsuccessful(outcome, plan, store):
        print(line, file=sys.stderr)
    return len(outcome.failed) + len(outcome.blocked)


def _unsuccessful(outcome: "Outcome", plan: Plan, store: Store) -> list[str]:
    """Return one line for each trial that failed or was not run."""
    records = {trial: f"work/{trial}/{FAILURE}" for trial in outcome.failed}
    there = store.files.read_existing(list(records.values()))  # a process that never started leaves none
    details = {trial: f" (details: {store.url}/{path})" for trial, path in records.items() if path in there}
    labels = {trial.id: trial.label for trial in plan.trials}
    failed = [f"failed: {why}{details.get(trial, '')}" for trial, why in outcome.failed.items()]
    return failed + [f"not run because of a failure: {labels[trial]} ({trial})" for trial in sorted(outcome.blocked)]


def write_report(plan: Plan, study: Study) -> int:
    """Write results table and report of what is finished of a study, and of what else was ever asked for under its
    name, into the store; claims to the terminal. Return the number of figures that could not be drawn."""
    from rayexp.reports import page

    def make(whole: Plan, folder: Path) -> tuple[Any, list[dict[str, str]]]:
        report = page.write(whole, study.store, folder)
        with (folder / "claims.csv").open(newline="", encoding="utf-8") as claims:
            return report, list(csv.DictReader(claims))

    report, claims = study.write(plan, make)
    for row in claims:
        print(f"{row['claim']} {row['title']} | {row['setting']} | {row['measured']} | {row['verdict']}")
    place = f"{study.store.url}/studies/{study.name}"
    print(f"results: {place}/results.parquet\nreport:  {place}/report/index.html")
    for why in report.undrawn:
        print(why, file=sys.stderr)
    return len(report.undrawn)
