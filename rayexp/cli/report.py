"""Write the results table and the report of a study again, from what its store has; trains nothing, starts no Ray.

    python jobs/report.py --study demo --store runs

Takes the options of ``jobs/sweep.py``: they say which stages the study consists of.
"""

from pydantic import ValidationError

from rayexp.cli.run import DEFAULTS, executed, parsed, planned, refuse, write_report
from rayexp.spec import explain
from rayexp.store import Store, StoreError


def main(arguments: list[str] | None = None) -> int:
    """The whole job; returns the exit code."""
    try:
        sweep = parsed(arguments, DEFAULTS, __doc__)
        store = Store.of(executed(sweep))
        plan = planned(sweep, store)
        if not plan.finished:
            return refuse(f"store is {store.url!r}, which has no finished stage of the study {plan.study}")
        undrawn = write_report(plan, store, sweep.name)
    except ValidationError as error:
        return refuse(explain(error))
    except (ValueError, StoreError) as error:
        return refuse(str(error))
    return 1 if undrawn else 0
