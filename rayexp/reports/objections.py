"""The objections table: every condition of a study beside the control, and whether the objection was right.

Chains (``pairing``) and their prompts are paired. The gain of a chain is pass@k on the target cells at its end, minus
that of the model from which its first rollout stage starts. For a chain without rollouts, such as one of SFT, it is
minus that of the model from which the control's starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rayexp.evaluation.metrics import Interval, pass_at_k, pass_at_k_sampled
from rayexp.evaluation.statistics import ALPHA, conservative_interval, detectable, holm, p_of_mean, p_within
from rayexp.formatting import number
from rayexp.reports.arms import TARGET_OF, percent
from rayexp.reports.checks import REFUTED, SMALL_GAIN, SUPPORTED, UNDECIDED
from rayexp.reports.claims import over_looks
from rayexp.reports.pairing import paired
from rayexp.stages import GRPO, RolloutStage, Stage
from rayexp.stages.settings import Setting, condition, placed, varying
from rayexp.studies.conditions import CONTROL, Condition
from rayexp.sweep.plan import Plan

#: Verdict if neither condition gained: equal gains of 0 are no evidence.
NOT_TESTED = "not tested: neither gained anything"
#: Gains that differ by less than this are the same gain.
SAME_GAIN = 0.05
KEY = ["role", "cell", "prompt_index"]
#: Pairs that are judged together agree in these.
PLACE = ["setting", "task", "ood_ratio", "role"]
COLUMNS = [
    *("condition", "objection", "source", "predicts", "k", *PLACE),
    *("control_before", "control_after", "before", "after", "control_gain", "gain", "effect"),
    *("value", "low", "high", "seeds", "n", "detectable", "verdict", "p", "p_holm", "verdict_holm"),
    *("place", "measured"),
]


def objections(plan: Plan, results: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each condition but the control, and for each task and OOD ratio; none of a study without
    conditions.

    Columns: condition, objection, source, predicts, k, as of ``Condition``; setting, what else tells pairs of one
    condition apart; task, ood_ratio, role (of the cells); means of pass@k before and after in control and condition;
    both gains and their paired difference, the effect; value, low, high, of what the verdict compares, with seeds and n
    (pairs of a seed and a prompt); detectable, the smallest distance from the limit that so many seeds find in four of
    five cases, at the spread seen; verdict, p, and both after Holm's procedure over the table; place and measured,
    the same in words.
    """
    control = next((each for each in plan.conditions if each.name == CONTROL), None)
    others = [each for each in plan.conditions if each.name != CONTROL]
    rows = [row for each in others if control for row in _rows(control, each, results)]
    found = pd.DataFrame(rows, columns=[name for name in COLUMNS if not name.endswith("_holm")])
    found = over_looks(_tested(found), plan.looks)
    found["p_holm"] = pd.Series(holm(found["p"].tolist()), dtype=float)
    kept = (found["p_holm"] < ALPHA) | ~found["verdict"].isin([SUPPORTED, REFUTED])
    return found.assign(verdict_holm=found["verdict"].where(kept, UNDECIDED))[COLUMNS]


def _tested(found: pd.DataFrame) -> pd.DataFrame:
    """Return the findings with the verdict "not tested" for conditions that gained nothing on a task, at no OOD ratio,
    where the control gained nothing either. Both may have been too short."""
    gains = found.assign(most=found[["gain", "control_gain"]].astype(float).abs().max(axis=1))
    most = gains.groupby(["condition", "task"])["most"].transform("max")
    idle = (most < SMALL_GAIN) & found["verdict"].isin([SUPPORTED, REFUTED])
    return found.assign(verdict=found["verdict"].mask(idle, NOT_TESTED), p=found["p"].astype(float).mask(idle))


def _rows(control: Condition, other: Condition, results: pd.DataFrame) -> Iterator[dict[str, Any]]:
    measured = {str(stage_id): rows for stage_id, rows in results.groupby("stage_id", sort=False)}
    apart = _apart(control.ends), _apart(other.ends)
    several_betas = len({end.kl_beta for end in control.ends if isinstance(end, GRPO)}) > 1
    frames = []
    for pair in paired(control.ends, other.ends):
        frame = _pair(*pair, other.k, measured)
        if frame is not None:
            settings = [condition(end, among) for end, among in zip(pair, apart, strict=True)]
            betas = [f"β = {number(pair[0].kl_beta)}"] if several_betas and isinstance(pair[0], GRPO) else []
            frames.append(frame.assign(setting=" | ".join(filter(None, dict.fromkeys([*betas, *settings])))))
    if not frames:
        return
    groups: Any = pd.concat(frames).groupby(PLACE, sort=False)
    for names, pairs in groups:
        place = dict(zip(PLACE, names, strict=True))
        where = ", ".join(filter(None, [place["task"], f"{percent(place['ood_ratio'])} % OOD", place["setting"]]))
        yield {"condition": other.name, **other.about, **place, "place": where, **_judged(other, pairs.dropna())}


def _apart(ends: Sequence[Stage]) -> dict[Setting, str]:
    """Return the settings, besides the task, in which the ends of one condition differ, with their titles. Settings
    that ``varying`` always names, such as a mixture, are the subject of the condition and left out."""
    values = [placed(end) for end in ends]
    differ = {setting for each in values for setting in each if any(each[setting] != of.get(setting) for of in values)}
    return {
        setting: name
        for setting, name in varying(ends).items()
        if setting in differ and not setting[1].startswith("task.")
    }


def _pair(control: Stage, other: Stage, k: int, measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Return pass@k before and after in both chains of a pair, one row a target prompt; None where any of the four is
    not measured."""
    start = _start(control)
    stages = (start, control, _start(other) or start, other)
    if any(stage is None or stage.id not in measured for stage in stages):
        return None
    masses = [_mass(measured[stage.id], k) for stage in stages if stage]
    frame = pd.concat(masses, axis=1, join="inner", keys=["control_before", "control_after", "before", "after"])
    root, target = control.root, TARGET_OF[getattr(control, "prompt_role", "ood")]
    about = {"task": root.task.label, "ood_ratio": root.ood_ratio, "seed": control.chain_seed}
    frame = frame.reset_index()
    return frame[frame["role"] == target].assign(**about)


def _start(end: Stage) -> Stage | None:
    """Return the stage whose model first drew completions for learning; None if none did."""
    return next((stage.init for stage in end.lineage if isinstance(stage, RolloutStage)), None)


def _mass(rows: pd.DataFrame, k: int) -> pd.Series:
    """Return pass@k of every prompt: exact where Q is, else its unbiased estimate, NaN where too few were drawn."""
    sampled = int(rows["sampled"].max())
    if not sampled:
        mass = pass_at_k(rows["q"].to_numpy(), k)
    elif k <= sampled:
        mass = pass_at_k_sampled(sampled, rows["answer_correct"].to_numpy(), k)
    else:
        mass = np.full(len(rows), np.nan)
    return pd.Series(mass, index=pd.MultiIndex.from_frame(rows[KEY]))


def _judged(other: Condition, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the measured effect of pairs, and the verdict on the prediction."""
    if pairs.empty:
        return {"verdict": UNDECIDED, "measured": f"pass@{other.k} is not known", "seeds": 0, "n": 0}
    pairs = pairs.assign(
        control_gain=pairs["control_after"] - pairs["control_before"], gain=pairs["after"] - pairs["before"]
    )
    pairs = pairs.assign(effect=pairs["gain"] - pairs["control_gain"])
    means = pairs[["control_before", "control_after", "before", "after", "control_gain", "gain", "effect"]].mean()
    compared = "gain" if other.predicts == "nothing" else "effect"
    lowest = means[compared] - means["after"]  # if nothing had been left; at most all could have been
    value = conservative_interval(pairs, compared, (lowest, lowest + 1))
    limits = {"more": (SMALL_GAIN, np.inf), "same": (-SAME_GAIN, SAME_GAIN), "nothing": (-SMALL_GAIN, SMALL_GAIN)}
    verdict, p = _verdict(pairs, compared, value, limits[other.predicts])
    if other.predicts == "same" and means[["gain", "control_gain"]].abs().max() < SMALL_GAIN:
        verdict, p = NOT_TESTED, None
    return {
        **{str(name): mean for name, mean in means.items()},
        **{"value": value.mean, "low": value.low, "high": value.high, "seeds": value.seeds, "n": value.prompts},
        **{"detectable": detectable(pairs, compared), "verdict": verdict, "p": np.nan if p is None else p},
        "measured": f"{compared} {value:+.3g}; from {means['before']:.2g} to {means['after']:.2g}, "
        f"control from {means['control_before']:.2g} to {means['control_after']:.2g}",
    }


def _verdict(
    pairs: pd.DataFrame, compared: str, value: Interval, limits: tuple[float, float]
) -> tuple[str, float | None]:
    """Return the verdict on a mean that is predicted to lie between limits, and its p-value."""
    low, high = limits
    inside = low < value.low and value.high < high
    outside = value.high < low or value.low > high
    if inside and np.isfinite(high):
        return SUPPORTED, p_within(pairs, compared, limits)
    nearest = low if value.mean < low or not np.isfinite(high) else high
    p = p_of_mean(pairs, compared, nearest)
    if value.undecided or not (inside or outside):
        return UNDECIDED, p
    return (SUPPORTED if inside else REFUTED), p
