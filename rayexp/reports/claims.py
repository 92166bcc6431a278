"""Claims as a table: every check (``checks``) of every arm and beta, with its verdict.

A verdict stands by itself; beside it stands what is left of it when all tests of the report are one family and Holm's
procedure bounds the chance of a single wrong verdict among them.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from rayexp.evaluation.statistics import ALPHA, holm
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, Arm, arms, percent
from rayexp.reports.checks import CLAIMS, FAILS, HOLDS, REFUTED, SUPPORTED, UNDECIDED, Claim, Finding, missing

#: Where GRPO did nothing, whatever is said of its limits is true and worth nothing.
NOT_TESTED = "not tested: GRPO changed nothing"
#: GRPO that moves less than this share of what could be added has changed nothing.
SMALL_CHANGE = 0.01


def claims(results: pd.DataFrame, curves: pd.DataFrame | None = None, looks: int = 1) -> pd.DataFrame:
    """One row for each claim, arm and beta, and for each OOD ratio where the claim is about one. curves: where they are
    given, it is said where GRPO earned no reward. looks: that the study is planned with (``studies.looks``).

    Columns: claim, title, prediction, setting, layers, condition, prompt_role (of GRPO), kl_beta, role (of the cells),
    ood_ratio;
    value, low, high (of what the verdict compares), seeds, n (pairs of a seed and a prompt); measured, verdict, note;
    p, p_holm (adjusted over all rows that have one), verdict_holm.
    """
    found = pd.DataFrame([_row(claim, *found) for claim in CLAIMS for found in _findings(claim, arms(results), curves)])
    found = over_looks(found, looks)
    found["p_holm"] = pd.Series(holm(found["p"].tolist()), dtype=float)
    kept = found["p_holm"] < ALPHA
    found["verdict_holm"] = found["verdict"].where(kept | ~found["verdict"].isin([HOLDS, FAILS]), UNDECIDED)
    return found


def over_looks(found: pd.DataFrame, looks: int) -> pd.DataFrame:
    """Return findings whose p-values count as many times as there are looks; what has none below 5 % then is
    undecided."""
    if looks == 1:
        return found
    p = (found["p"].astype(float) * looks).clip(upper=1.0)
    decided = found["verdict"].isin([HOLDS, FAILS, SUPPORTED, REFUTED])
    return found.assign(p=p, verdict=found["verdict"].mask(decided & ~(p < ALPHA), UNDECIDED))


def _findings(claim: Claim, found: list[Arm], curves: pd.DataFrame | None) -> list[tuple[Finding, Arm | None, float]]:
    if not found:
        return [(missing("no GRPO stage has been measured together with its init"), None, float("nan"))]
    return [
        (finding if _changed(rows) else _untested(finding, rows, curves), arm, rows["kl_beta"].iloc[0])
        for arm in found
        for _, rows in arm.rows.groupby("kl_beta")
        for finding in claim.check(arm, rows)
    ]


def _row(claim: Claim, finding: Finding, arm: Arm | None, beta: float) -> dict[str, object]:
    setting, value = "", finding.value
    if arm:
        cells = f", {ROLE_NAMES[finding.role]} cells" if finding.role else ""
        at = "" if finding.ood_ratio is None else f", {percent(finding.ood_ratio)} % OOD"
        setting = f"{arm.name}, β = {number(beta)}{cells}{at}"
    return {
        "claim": claim.id,
        "title": claim.title,
        "prediction": claim.prediction,
        "setting": setting,
        "layers": arm.layers if arm else None,
        "condition": arm.condition if arm else None,
        "prompt_role": arm.prompt_role if arm else None,
        "kl_beta": beta,
        "role": finding.role,
        "ood_ratio": finding.ood_ratio,
        "value": value.mean if value else None,
        "low": value.low if value else None,
        "high": value.high if value else None,
        "seeds": value.seeds if value else 0,
        "n": value.prompts if value else 0,
        "measured": finding.measured,
        "verdict": finding.verdict,
        "p": np.nan if finding.p is None else finding.p,
        "note": _with_scope(finding),
    }


def _changed(rows: pd.DataFrame) -> bool:
    """Return whether GRPO moved the masses of any cells, up or down, at any OOD ratio."""
    moved = rows.assign(moved=rows["gain"].abs(), room=1 - rows["init_q"]).groupby(["role", "ood_ratio"])
    means = moved[["moved", "room"]].mean()
    return bool((means["moved"] >= SMALL_CHANGE * means["room"]).where(means["moved"] > 0, False).any())


def _untested(finding: Finding, rows: pd.DataFrame, curves: pd.DataFrame | None) -> Finding:
    """A finding about GRPO that changed nothing. It may refute a claim all the same, and can't support one."""
    measured = "; ".join(filter(None, [finding.measured, _reward(rows, curves)]))
    if finding.verdict not in (HOLDS, UNDECIDED):
        return replace(finding, measured=measured)
    moved = f"In the mean over prompts, GRPO moved no mass by {100 * SMALL_CHANGE:g} % of what could be added"
    why = f"{moved}: it may have been too short."
    return replace(finding, verdict=NOT_TESTED, measured=measured, p=None, note=why)


def _reward(rows: pd.DataFrame, curves: pd.DataFrame | None) -> str:
    """Describe what GRPO earned, as far as it was logged."""
    if curves is None:
        return ""
    logged = curves[(curves["metric"] == "rollout/reward") & curves["stage_id"].isin(rows["stage_id"])]["value"]
    if logged.empty:
        return ""
    best = logged.max()
    return f"GRPO earned a mean reward of {best:.2g} at most" if best > 0 else "GRPO earned no reward"


def _with_scope(finding: Finding) -> str:
    one_seed = "One seed: the interval covers prompts only and says nothing about another run."
    return " ".join(filter(None, [finding.note, one_seed if finding.value and finding.value.seeds == 1 else ""]))
