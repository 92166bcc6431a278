"""Plan a study, run its missing stages on Ray, and write its results and its report.

    rayexp run demo                      the demo, on this machine
    rayexp run depth --scale paper       another study and scale; `rayexp plan` with the same options says its cost
    ray job submit --working-dir . -- python jobs/sweep.py --study composition --store s3://bucket/study

The same command continues an interrupted run. If all is finished, it ends in seconds.

Several runs may share a store at the same time.

Exit codes: 0 all done, 1 something failed, 2 refused before any work, 130 stopped (Ctrl-C, SIGTERM).
"""

import json
import math
import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import tyro

from rayexp import api, terminal
from rayexp.api import Job
from rayexp.cli.command import run_command, stopped_once, working
from rayexp.cli.config_file import read_config
from rayexp.config import RunConfig
from rayexp.experiment import Experiment
from rayexp.store.index import StoreIndex
from rayexp.store.provenance import command_line
from rayexp.studies import SUMMARIES
from rayexp.sweep import notify, preflight, trackers
from rayexp.sweep.notify import Course
from rayexp.sweep.preview import ClusterResources, render_plan
from rayexp.sweep.trackers import Trackers


class Options(RunConfig):
    """Machines, workers and limits. None of these changes a result by more than rounding."""

    lease: Annotated[str, tyro.conf.Suppress] = ""
    argv: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()


#: Help of ``rayexp plan``.
PLAN = """Print every stage of a study with its state, and what the unfinished ones cost. Starts nothing.

    rayexp plan depth --scale paper                  time, memory and storage
    rayexp plan depth --scale paper --price 12.5     also money, if all its machines together cost 12.5 an hour

Takes the options of `rayexp run`, because it says what that would do.
"""
#: Variable that Ray sets for the driver of a submitted job.
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
DEMO, USUAL = Experiment(), Options()


@dataclass(frozen=True)
class Sweep:
    """Plan a study, run its missing stages on Ray, and write its results and its report."""

    experiment: Annotated[Experiment, tyro.conf.OmitArgPrefixes] = DEMO
    config: str | None = None
    """YAML or JSON file with the options of an experiment by name, and machines, workers and limits under `run_config`.
    Options on the command line override those in the file."""
    plan: bool = False
    """Print every stage with its state, cost and parent, and stop."""
    json: bool = False
    """Print the plan as JSON: the experiment with all its settings, how it is run, and every stage."""
    price: Annotated[float | None, tyro.conf.arg(metavar="PRICE")] = None
    """Price of all machines of the plan together for an hour; the plan then says what the unfinished stages cost."""
    repair: bool = False
    """First read every finished artifact of the plan, and make the damaged ones again."""
    force: tuple[str, ...] = ()
    """Stages to make again (id, prefix of an id, or label), with all stages of the plan that are built on them. The
    old artifacts are moved to replaced/ in the store."""
    fail_fast: bool = False
    """Stop after the first failure."""
    loggers: tuple[str, ...] = ()
    """Trackers to write to beside the store: csv, json, mlflow, tensorboard, trackio, wandb."""
    serve: bool = False
    """Show the store in a browser with Ray Serve for as long as the cluster lives; the address is printed. A job that
    was submitted to a cluster with a token does this by default."""
    no_serve: bool = False
    """Do not show the store in a browser, not even in such a job."""
    notify: str | None = None
    """Report once how the sweep ended: an http or https URL gets a POST of JSON, a shell command gets the JSON on its
    standard input."""
    resources: Annotated[Options, tyro.conf.OmitArgPrefixes] = USUAL

    def serves(self) -> bool:
        """Return whether to show the store in a browser."""
        by_itself = SUBMITTED in os.environ and os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        return self.serve or (by_itself and not self.no_serve)

    def run_config(self, argv: tuple[str, ...] = ()) -> RunConfig:
        """Return how to run the stages."""
        return RunConfig.model_validate(self.resources.model_dump() | {"argv": argv})


def main(arguments: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    """Run the command; return the exit code. ``prog`` is its name in its help."""
    return run_command(lambda: _sweep(parse_args(arguments, prog, description), command_line(arguments)))


def _sweep(sweep: Sweep, argv: tuple[str, ...]) -> int:
    try:
        trackers.require(sweep.loggers)
        notify.require(sweep.notify)
        first = api.prepare(sweep.experiment, sweep.run_config(argv), again=sweep.force)
        if sweep.plan:
            print(_plan_json(sweep, first) if sweep.json else _plan_text(first, sweep.price))
            return 0
        if sweep.repair:
            api.unpublish_damaged(first)
            first = api.prepare(sweep.experiment, first.run_config, again=sweep.force)
        with (
            notify.announced(sweep.notify, Course(first.study, first.plan)) as course,
            api.open_trackers(first, sweep.loggers) as tracked,
        ):
            failed, undrawn = _run(first, sweep, course, tracked)
    except KeyboardInterrupt:
        begun = " (with --force it makes the named stages again from their start)" if sweep.force else ""
        print(f"stopped; the same command goes on from here{begun}", file=sys.stderr)
        return 130
    print(*undrawn, sep="\n", end="\n" * bool(undrawn), file=sys.stderr)
    return 1 if failed or undrawn else 0


def _run(first: Job, sweep: Sweep, course: Course, tracked: Trackers) -> tuple[list[str], list[str]]:
    """Run a job, then those that its experiment wants after it. Return a line for each failure and each figure that
    could not be drawn."""
    job, failed, address = first, [], ""
    for job in api.rounds(first):
        print(job.summary(), flush=True)
        job = api.begin(job)
        course.plan = job.plan
        failed = []
        if job.plan.trials:
            with stopped_once():
                api.connect(job)
            address = address or (_serve(job) if sweep.serves() else "")
            failed = _execute(job, sweep, tracked)
        if failed:
            break
    with working():
        undrawn, course.verdicts = api.write_report(job, tracked)
    if address:
        there = f"rayexp serve --store {job.store.url}" if _own_cluster() else address  # which has ended with the sweep
        print(f"in a browser: {there}", flush=True)
    course.failed = bool(failed or undrawn)
    return failed, undrawn


def _serve(job: Job) -> str:
    """Show the store of a job with Ray Serve; return the address. If that fails, say so and return nothing: a sweep
    does not need it."""
    from rayexp.distributed import runtime
    from rayexp.service import deployment  # a web framework, and Ray Serve

    try:
        address = deployment.deploy(job.store.url)
    except deployment.ServeError as error:
        print(f"results are not shown in a browser: {error}; `rayexp serve` shows them", flush=True)
        return ""
    runtime.describe_job({"results": address})
    print(f"results in a browser: {address}", flush=True)
    return address


def _execute(job: Job, sweep: Sweep, tracked: Trackers) -> list[str]:
    job = api.ready(job)
    with working():
        failed = api.execute(job, tracked, sweep.fail_fast)
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    return failed


def parse_args(arguments: list[str] | None, prog: str | None = None, description: str | None = __doc__) -> Sweep:
    """Return the command line as a Sweep. Raises ValueError or ValidationError."""
    words = sys.argv[1:] if arguments is None else arguments
    default = Sweep()
    if file := _config_in(words):
        experiment, run_config = read_config(file, default.experiment)
        default = Sweep(experiment=experiment, resources=Options.model_validate(run_config.model_dump()))
    known = "\n".join(f"    {name:14} {about}" for name, about in SUMMARIES.items())
    text = f"{description}\nStudies:\n\n{known}"
    sweep = terminal.parse_args(Sweep, words, default=default, prog=prog, description=text)
    if sweep.serve and sweep.no_serve:
        raise ValueError("serve and no_serve are both given; give one of them")
    if sweep.json and not sweep.plan:
        raise ValueError("--json prints a plan; add --plan, or use `rayexp plan`")
    if sweep.price is not None and (sweep.json or not sweep.plan):
        raise ValueError(f"price={sweep.price:g} is for a plan that is printed as text; add --plan without --json")
    if sweep.price is not None and not 0 <= sweep.price < math.inf:
        raise ValueError(f"price={sweep.price:g} should be a finite number from 0 on")
    return sweep


def _config_in(words: list[str]) -> str | None:
    """Return the configuration file of a command line. It is read before the other options, which override it."""
    found = None
    for word, after in pairwise([*words, ""]):
        option, given, value = word.partition("=")
        if option == "--config":
            found = value if given else after
    return found


def _plan_text(job: Job, price: float | None) -> str:
    index = StoreIndex(job.store)
    drawn = render_plan(job.plan, index, job.run_config, machines(), terminal.terminal_width(), price)
    without = "" if price is None else " but --price"
    then = f"`rayexp run` with the same options{without} runs it." if job.plan.to_run else ""
    return "\n\n".join(filter(None, [job.summary(), drawn, _power(job), then]))


def _power(job: Job) -> str:
    """Say which gain the number of seeds can detect; nothing while there are no results."""
    if not any(stage.pool == "measure" and stage.id in job.plan.finished for stage in job.plan.stages):
        return ""
    from rayexp.reports import copies, power, table  # pandas, which only a store with results needs

    said = power.detectable_gains(copies.held_out(table.results(job.plan, job.store)))
    return said and f"power: {said}"


def _plan_json(sweep: Sweep, job: Job) -> str:
    stages = [
        {
            "id": stage.id,
            "kind": stage.kind,
            "label": job.plan.labels[stage.id],
            "init": stage.parent.id if stage.parent else None,
            "finished": stage.id in job.plan.finished,
            "flop": stage.flops,
            "settings": stage.model_dump(mode="json", exclude={"init"}),
        }
        for stage in job.plan.stages
    ]
    about = {"experiment": sweep.experiment.resolved().model_dump(mode="json")}
    run_config = job.run_config.model_dump(mode="json", exclude={"lease", "argv"})
    return json.dumps(about | {"run_config": run_config, "stages": stages}, indent=2)


def _own_cluster() -> bool:
    """Return whether a sweep starts a cluster of its own, which ends with it."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def machines() -> ClusterResources:
    """Return the machines of the cluster at RAY_ADDRESS; without one this machine, and Ray is not started."""
    if _own_cluster():
        return ClusterResources.here()
    from rayexp.distributed import runtime

    runtime.connect()
    return ClusterResources(preflight.capacity(), f"the Ray cluster at {os.environ['RAY_ADDRESS']}")
