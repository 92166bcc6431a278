"""Write the results table and the report of a study again from its finished stages. Trains nothing, starts no Ray.

    rayexp report demo --store runs

Give the study and its options as you gave them to `rayexp run`.

The report has all stages that were ever run under that name, and those of ratios, betas and seeds given here.
"""

import dataclasses
import sys

from rayexp import api
from rayexp.cli.command import run_command, working
from rayexp.cli.run import Sweep, parse_args
from rayexp.store.artifacts import StoreError
from rayexp.studies.conditions import changed
from rayexp.sweep.plan import Plan


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command; return the exit code. ``prog`` is its name in its help."""
    return run_command(lambda: _report(parse_args(arguments, prog, __doc__)))


def _report(sweep: Sweep) -> int:
    experiment = sweep.experiment
    job = api.prepare(experiment, sweep.run_config())
    labels, plan = job.study.labels(), job.plan
    if labels and not (experiment.seeds or experiment.ood_ratios or experiment.kl_betas):  # the scale's own grid
        wanted = changed([*plan.conditions, *plan.stages], lambda found: [each for each in found if each.id in labels])
        plan = Plan.of(plan.study, wanted, plan.finished, looks=plan.looks)
    if not plan.finished and not job.study.whole(plan, labels or plan.labels).finished:
        raise StoreError(f"store={job.store.url!r} has no finished stage of the study {plan.study}")
    with working():
        undrawn = api.write_report(dataclasses.replace(job, plan=plan)).undrawn
    print(*undrawn, sep="\n", end="\n" * bool(undrawn), file=sys.stderr)
    return 1 if undrawn else 0
