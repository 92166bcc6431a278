"""Write the results table and the report of a study again, from what its store has; trains nothing, starts no Ray.

    rayexp report demo --store runs

Takes the options of ``rayexp run``: they name the study. It has all stages that sweeps asked for under that name,
and those of a grid that is given here.
"""

from rayexp.cli.command import run_command, working
from rayexp.cli.run import DEFAULTS, Sweep, make_plan, make_run_config, parse_args, write_report
from rayexp.store.artifacts import Store, StoreError
from rayexp.sweep.plan import Plan


def main(arguments: list[str] | None = None) -> int:
    """Run the whole job; return the exit code."""
    return run_command(lambda: _report(parse_args(arguments, DEFAULTS, __doc__)))


def _report(sweep: Sweep) -> int:
    store = Store.of(make_run_config(sweep))
    study, plan = sweep.within(store), make_plan(sweep, store)
    labels = study.labels()
    if labels and not (sweep.seeds or sweep.ood_ratios or sweep.kl_betas):  # the scale's own grid was not asked for
        plan = Plan.of(plan.study, [stage for stage in plan.stages if stage.id in labels], plan.finished)
    if not study.whole(plan, labels or plan.labels).finished:
        raise StoreError(f"store is {store.url!r}, which has no finished stage of the study {plan.study}")
    study.require_one(plan)
    with working():
        undrawn = write_report(plan, study)
    return 1 if undrawn else 0
