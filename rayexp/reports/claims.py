"""Claims as a table: every check (``checks``) of every arm and beta, with its verdict.

Each verdict is first reached by itself. Beside it is the verdict after Holm's procedure, which takes all tests of the
report as one family and bounds the chance of a single wrong verdict among them.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from rayexp.evaluation.statistics import ALPHA, holm
from rayexp.formatting import number
from rayexp.reports.arms import ROLE_NAMES, Arm, arms, percent
from rayexp.reports.checks import CLAIMS, FAILS, HOLDS, REFUTED, SUPPORTED, UNDECIDED, Claim, Finding, missing

#: Verdict on a claim about the limits of GRPO where GRPO did nothing: it holds trivially.
NOT_TESTED = "not tested: GRPO changed nothing"
#: GRPO that moves the mass by less than this share of the possible gain has changed nothing.
SMALL_CHANGE = 0.01


def claims(results: pd.DataFrame, curves: pd.DataFrame | None = None, looks: int = 1) -> pd.DataFrame:
    """Return one row for each claim, arm and beta, and for each OOD ratio if the claim is about one. curves: if given,
    the rows say where GRPO had no reward. looks: number of looks in the plan of the study (``studies.looks``).

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
    """Return findings with p-values multiplied by the number of looks; those that are then not below 5 % are
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
    """Return a finding about GRPO that changed nothing. It may refute a claim, but cannot support one."""
    measured = "; ".join(filter(None, [finding.measured, _reward(rows, curves)]))
    if finding.verdict not in (HOLDS, UNDECIDED):
        return replace(finding, measured=measured)
    moved = f"In the mean over prompts, GRPO moved no mass by {100 * SMALL_CHANGE:g} % of the possible gain"
    why = f"{moved}: it may have been too short."
    return replace(finding, verdict=NOT_TESTED, measured=measured, p=None, note=why)


def _reward(rows: pd.DataFrame, curves: pd.DataFrame | None) -> str:
    """Describe the reward of GRPO, if it was logged."""
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
