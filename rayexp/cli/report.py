"""Write the results table and the report of a study again, from what its store has; trains nothing, starts no Ray.

    python jobs/report.py --study demo --store runs

Takes the options of ``jobs/sweep.py``: they say which stages the study consists of.
"""

from rayexp.cli.command import run_command, working
from rayexp.cli.run import DEFAULTS, Sweep, executed, parsed, planned, write_report
from rayexp.store import Store, StoreError


def main(arguments: list[str] | None = None) -> int:
    """The whole job; returns the exit code."""
    return run_command(lambda: _report(parsed(arguments, DEFAULTS, __doc__)))


def _report(sweep: Sweep) -> int:
    store = Store.of(executed(sweep))
    plan = planned(sweep, store)
    if not plan.finished:
        raise StoreError(f"store is {store.url!r}, which has no finished stage of the study {plan.study}")
    with working():
        undrawn = write_report(plan, store, sweep.name)
    return 1 if undrawn else 0
