"""The places at which a study is undecided, where more seeds are worth their cost."""

from rayexp.reports import table
from rayexp.reports.checks import UNDECIDED
from rayexp.reports.claims import claims
from rayexp.reports.copies import held_out
from rayexp.reports.objections import objections
from rayexp.store.artifacts import Store
from rayexp.studies.looks import Place
from rayexp.sweep.plan import Plan

#: The claims that a study is to decide; the others are findings.
CLAIMS = ("C1", "C2", "C3")


def places(plan: Plan, store: Store) -> set[Place]:
    """Return the tasks and OOD ratios at which a verdict of a finished plan is undecided: on its objections, if it has
    conditions, else on the paper's claims. A claim about all ratios counts for each of them."""
    results = held_out(table.without_texts(table.results(plan, store)))
    every = set(results[["task", "ood_ratio"]].drop_duplicates().itertuples(index=False, name=None))
    found = objections(plan, results) if plan.conditions else claims(results, looks=plan.looks)
    found = found[found["verdict"] == UNDECIDED]
    if plan.conditions:
        return every & set(found[["task", "ood_ratio"]].itertuples(index=False, name=None))
    ratios = set(found[found["claim"].isin(CLAIMS)]["ood_ratio"])
    return {place for place in every if place[1] in ratios or any(ratio != ratio for ratio in ratios)}
