"""The checks of the claims: prediction and measurement. C1 to C4 are the paper's claims. C5 replaces the bound of C4 by
the fixed point of GRPO with its own advantages and KL (``evaluation.fixed_point``).

A verdict compares a 95 % interval with a threshold that was fixed beforehand: ``holds`` or ``does not hold`` if the
whole interval lies on one side of it, else ``undecided``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from rayexp.evaluation.fixed_point import OTHER_REFERENCE
from rayexp.evaluation.metrics import Interval
from rayexp.evaluation.statistics import (
    conservative_interval,
    p_of_mean,
    p_of_proportion,
    possible_change,
    proportion,
)
from rayexp.evaluation.theory import paper_bound, tilted
from rayexp.reports.arms import Arm, before, percent

HOLDS, FAILS, UNDECIDED, NOT_MEASURED = "holds", "does not hold", "undecided", "not measured"
#: Verdict on a claim about a range of masses that no OOD ratio of the study reaches.
NOT_COVERED = "not covered by the grid"
#: Verdicts on objections (``reports.objections``).
SUPPORTED, REFUTED = "supported", "refuted"

#: A gain of less correct mass than this is no gain.
SMALL_GAIN = 0.01
#: Mean Q above which a stage is saturated, and what GRPO may then still add.
SATURATED_Q, SATURATED_GAIN = 0.9, 0.05
#: Mean Q from which on GRPO meets right completions often enough to learn from them: one in a hundred.
LEARNABLE_Q = 0.01
#: Share of prompts that may lie above the bound. The theorem allows none, but for the optimum, not for a network.
TOLERATED_SHARE = 0.05
#: Q and P come from float32 log-probabilities; a relative difference below this is rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Finding:
    """One claim measured in one setting.

    value: the interval that the verdict compares, None if it was not measured. p: two-sided p-value of the threshold,
    None also with one seed. ood_ratio: None if the claim compares several.
    """

    verdict: str
    measured: str
    value: Interval | None = None
    p: float | None = None
    role: str | None = None
    note: str = ""
    ood_ratio: float | None = None


@dataclass(frozen=True)
class Claim:
    """A claim. id, title and prediction are texts; check measures it on the rows of one arm and one beta."""

    id: str
    title: str
    prediction: str
    check: Callable[[Arm, pd.DataFrame], list[Finding]]


def no_mass_no_gain(arm: Arm, rows: pd.DataFrame) -> list[Finding]:
    """Check C1: the gain on the target cells of decoders that were pretrained without any OOD sample."""
    target = rows[rows["role"] == arm.target]
    without = target[(target["ood_ratio"] == 0) & target["source"].isna()]
    if without.empty:
        return [missing("the study has no finished chain from scratch with an OOD ratio of 0", arm.target)]
    gain = conservative_interval(without, "gain", possible_change(without["init_q"]))
    measured = f"gain {gain}, from a mean Q of {before(without)['init_q'].mean():.2g}"
    p = p_of_mean(without, "gain", SMALL_GAIN)
    return [Finding(_below(gain, SMALL_GAIN), measured, gain, p, arm.target, _idle(target), 0.0)]


def gain_in_between(arm: Arm, rows: pd.DataFrame) -> list[Finding]:
    """Check C2: the paired differences between the gain at the best unsaturated ratio in between and the gains at the
    lowest and the highest ratio.

    The best ratio is chosen by its gain, which favours it; having to beat both ends makes up for that. If no ratio has
    a mean Q between ``LEARNABLE_Q`` and ``SATURATED_Q``, a missing gain decides nothing.
    """
    target = rows[rows["role"] == arm.target]
    each = ["seed", "cell", "prompt_index"]
    gains, masses = (target.pivot_table(index=each, columns="ood_ratio", values=of) for of in ("gain", "init_q"))
    means, q = gains.mean(), target.groupby("ood_ratio")["init_q"].mean()
    ratios = means.index.tolist()
    between = [ratio for ratio in ratios[1:-1] if q[ratio] <= SATURATED_Q]
    if not between:
        return [missing("no OOD ratio is finished that has one on either side and is not saturated", arm.target)]
    low_end, high_end, best = ratios[0], ratios[-1], max(between, key=lambda ratio: means[ratio])
    pairs = gains[[low_end, best, high_end]].dropna()
    if pairs.empty:
        return [missing("no seed is finished at all three of the ratios to compare", arm.target)]
    before_best, *before_ends = (masses.loc[pairs.index, ratio].mean() for ratio in (best, low_end, high_end))
    compared = [pairs.assign(margin=pairs[best] - pairs[end]).reset_index() for end in (low_end, high_end)]
    # At the extremes, one ratio loses all of its mass while the other gains all that it lacks.
    limits = [(end - before_best - 1, end - before_best + 1) for end in before_ends]
    margins = [conservative_interval(rows, "margin", possible) for rows, possible in zip(compared, limits, strict=True)]
    verdict, note = _in_between(margins, means, q[high_end])
    measured = (
        f"gain {means[best]:.3g} at {percent(best)} % OOD; more than at {percent(low_end)} % by {margins[0]}, "
        f"than at {percent(high_end)} % by {margins[1]}"
    )
    smallest = min(margins, key=lambda margin: margin.mean)
    if verdict != HOLDS and not any(LEARNABLE_Q <= q[ratio] <= SATURATED_Q for ratio in ratios):
        passed = (
            f"The mean Q before GRPO rises past the range from {LEARNABLE_Q:g} to {SATURATED_Q:g} between two ratios"
        )
        return [
            Finding(NOT_COVERED, measured, smallest, None, arm.target, f"{passed}; --ood-ratios auto finds some in it.")
        ]
    return [Finding(verdict, measured, smallest, _p_of_both(compared, verdict), arm.target, note)]


def _p_of_both(compared: list[pd.DataFrame], verdict: str) -> float | None:
    """Return the p-value of a claim that needs both margins: the larger of the two (intersection-union test). One
    missing margin refutes the claim; then it is the smaller one, doubled because two were tested."""
    found = [p for rows in compared if (p := p_of_mean(rows, "margin", SMALL_GAIN)) is not None]
    if not found:
        return None
    return min(1.0, 2 * min(found)) if verdict == FAILS else max(found)


def _in_between(margins: list[Interval], means: pd.Series, highest_q: float) -> tuple[str, str]:
    """Return verdict and note. margins: over the lowest and the highest ratio; means: the mean gain at each ratio, in
    ascending order; highest_q: mean Q before GRPO at the highest ratio."""
    if means.max() < SMALL_GAIN:
        return UNDECIDED, f"No OOD ratio gained {SMALL_GAIN:g}: there is no gain that could be largest anywhere."
    if means.argmax() == len(means) - 1 and highest_q <= SATURATED_Q:
        short = "The gain is largest at the highest ratio, but the grid ends before saturation"
        return UNDECIDED, f"{short}: mean Q before GRPO there is {highest_q:.2g}."
    found = {_above(margin, SMALL_GAIN) for margin in margins}
    verdict = next(verdict for verdict in (FAILS, UNDECIDED, HOLDS) if verdict in found)
    return verdict, f"Mean Q before GRPO at the highest ratio is {highest_q:.2g}."


def saturation(arm: Arm, rows: pd.DataFrame) -> list[Finding]:
    """Check C3: the gain at each OOD ratio with a mean Q before GRPO above ``SATURATED_Q``, on ID and target cells."""
    return [found for role in dict.fromkeys(("id", arm.target)) for found in _saturation(role, rows)]


def _saturation(role: str, rows: pd.DataFrame) -> list[Finding]:
    ratios = rows[rows["role"] == role].groupby("ood_ratio")
    found = [_at_saturation(role, at) for _, at in ratios if at["init_q"].mean() > SATURATED_Q]
    nowhere = f"mean Q before GRPO is at most {SATURATED_Q:g} at every finished OOD ratio"
    return found or [missing(nowhere, role)]


def _at_saturation(role: str, rows: pd.DataFrame) -> Finding:
    gain, possible = conservative_interval(rows, "gain", possible_change(rows["init_q"])), 1 - rows["init_q"]
    measured = f"gain {gain} of a possible {possible.mean():.3g}"
    if possible.mean() > 0:
        # A ratio of means, linearised (delta method) so that it has an interval like any mean.
        share = rows["gain"].mean() / possible.mean()
        linear = rows.assign(share=share + (rows["gain"] - share * possible) / possible.mean())
        found = _share(conservative_interval(linear, "share"))
        measured += f"; the share of that is {found.uncertain}" if found.undecided else f": a share of {found}"
    note = ""
    if possible.mean() < SATURATED_GAIN:
        note = (
            "So little was left to gain that the limit can hardly be passed; the share says how much GRPO gained of it."
        )
    p = p_of_mean(rows, "gain", SATURATED_GAIN)
    return Finding(_below(gain, SATURATED_GAIN), measured, gain, p, role, note, rows["ood_ratio"].iloc[0])


def bounded(arm: Arm, rows: pd.DataFrame) -> list[Finding]:
    """Check C4: the share of prompts, of the role GRPO trained on, whose P lies above exp(1/beta) Q, at each OOD ratio.

    Only prompts with a bound below 1 count, because no other P could exceed it.
    """
    trained = rows[rows["role"] == arm.prompt_role]
    beta = float(rows["kl_beta"].iloc[0])
    if beta == 0:
        return [missing("without a KL penalty there is no bound", arm.prompt_role)]
    if trained.empty:
        return [missing("GRPO's own cells have not been measured", arm.prompt_role)]
    if (trained["beyond_theory"] == OTHER_REFERENCE).any():
        return [missing(f"the bound is about the reference: {OTHER_REFERENCE}", arm.prompt_role)]
    q, p = trained["init_q"].to_numpy(), trained["q"].to_numpy()
    bound, optimum = paper_bound(q, beta), tilted(q, beta)
    trained = trained.assign(
        over=p > bound * (1 + ROUNDING), over_optimum=p > optimum * (1 + ROUNDING), binds=bound < 1
    )
    found = [_bounded(arm.prompt_role, at) for _, at in trained.groupby("ood_ratio") if at["binds"].any()]
    nowhere = f"the bound is 1 for all {len(trained)} prompts, whose Q is above exp(-1/β)"
    return found or [replace(missing(nowhere, arm.prompt_role), note=f"Share {_above_optimum(trained)}.")]


def _bounded(role: str, rows: pd.DataFrame) -> Finding:
    """Check C4 at one ratio. Wilson's interval takes prompts as independent, which prompts of one run are not, so it is
    widened to the interval over seeds."""
    binding = rows[rows["binds"]]
    share = proportion(binding, "over")
    measured = f"share above the bound {share} of {len(binding)}; {_above_optimum(rows)}"
    note = f"The bound is below 1 for {len(binding)} of {len(rows)} prompts. {_idle(rows)}".strip()
    p = p_of_proportion(binding, "over", TOLERATED_SHARE)
    return Finding(_below(share, TOLERATED_SHARE), measured, share, p, role, note, rows["ood_ratio"].iloc[0])


def as_run(arm: Arm, rows: pd.DataFrame) -> list[Finding]:
    """Check C5: the share of prompts, of the role GRPO trained on, whose P lies above the fixed point of GRPO as it is
    run, at each OOD ratio, and the distance of P from it.

    Only prompts with a fixed point below 1 count, because no other P could exceed it.
    """
    trained = rows[rows["role"] == arm.prompt_role]
    if trained.empty:
        return [missing("GRPO's own cells have not been measured", arm.prompt_role)]
    if reasons := ", ".join(filter(None, trained["beyond_theory"].unique())):
        return [missing(f"the theory does not cover what was run: {reasons}", arm.prompt_role)]
    point = trained["fixed_point"]
    trained = trained.assign(
        over=trained["q"] > point * (1 + ROUNDING), binds=point < 1 - ROUNDING, distance=trained["q"] - point
    )
    return [_as_run(arm.prompt_role, at) for _, at in trained.groupby("ood_ratio")]


def _as_run(role: str, rows: pd.DataFrame) -> Finding:
    mean, ratio = float(rows["fixed_point"].mean()), float(rows["ood_ratio"].iloc[0])
    distance = f"mean P minus it {conservative_interval(rows, 'distance', (-mean, 1 - mean))} of {len(rows)}"
    binding = rows[rows["binds"]]
    if binding.empty:
        return replace(missing(f"the fixed point is 1 for all {len(rows)} prompts; {distance}", role), ood_ratio=ratio)
    share = proportion(binding, "over")
    note = f"The fixed point is below 1 for {len(binding)} of {len(rows)} prompts, and {mean:.2g} in the mean."
    if several := int((rows["highest_fixed_point"] > rows["fixed_point"] + SMALL_GAIN).sum()):
        note += f" {several} prompts have a higher one as well, which is not the one reached from their Q."
    return Finding(
        _below(share, TOLERATED_SHARE),
        f"share above the fixed point {share} of {len(binding)}; {distance}",
        share,
        p_of_proportion(binding, "over", TOLERATED_SHARE),
        role,
        f"{note} {_idle(rows)}".strip(),
        ratio,
    )


def _above_optimum(rows: pd.DataFrame) -> str:
    return f"above the tilted optimum: {proportion(rows, 'over_optimum')} of {len(rows)}"


CLAIMS = (
    Claim(
        "C1",
        "No mass, no gain",
        f"Without OOD samples in pretraining, GRPO adds less than {SMALL_GAIN:g} to the mean Q.",
        no_mass_no_gain,
    ),
    Claim(
        "C2",
        "The gain is largest in between",
        f"Some OOD ratio, not yet saturated, gains at least {SMALL_GAIN:g} more than both the lowest and the highest.",
        gain_in_between,
    ),
    Claim(
        "C3",
        "Nothing is added at saturation",
        f"Where the mean Q before GRPO is above {SATURATED_Q:g}, GRPO adds less than {SATURATED_GAIN:g}. At most 1-Q "
        "can be added, so the share of that is given too.",
        saturation,
    ),
    Claim(
        "C4",
        "GRPO is a bounded reweighting",
        f"P after GRPO is at most exp(1/β) Q: fewer than {100 * TOLERATED_SHARE:g} % of prompts lie above. A finding, "
        "not a test: the theorem is about the optimum of each prompt, not about a network that shares its weights.",
        bounded,
    ),
    Claim(
        "C5",
        "GRPO as it is run has a fixed point",
        "P after GRPO is at most the P at which the gradient of its own advantages and that of its KL cancel: fewer "
        f"than {100 * TOLERATED_SHARE:g} % of prompts lie above. A finding, not a test: it is about each prompt by "
        "itself. GRPO may stop before it, or pass it by generalising from other prompts.",
        as_run,
    ),
)


# Verdicts


def _idle(rows: pd.DataFrame) -> str:
    """Return a warning if GRPO gained nothing: then a claim about its limits holds without having been tested."""
    gains = rows.groupby("ood_ratio")["gain"].mean()
    if gains.max() >= SMALL_GAIN:
        return ""
    nothing = f"No OOD ratio gained {SMALL_GAIN:g}" if len(gains) > 1 else f"The gain is below {SMALL_GAIN:g}"
    return f"{nothing} here, so this is weak evidence: GRPO may have been too short."


def _share(found: Interval) -> Interval:
    """Return the share of the possible gain, cut to 0 to 1: a loss counts as 0."""
    return replace(found, mean=min(max(found.mean, 0.0), 1.0)).within((0.0, 1.0))


def _below(value: Interval, limit: float) -> str:
    if value.undecided:
        return UNDECIDED
    return HOLDS if value.high < limit else FAILS if value.low > limit else UNDECIDED


def _above(value: Interval, limit: float) -> str:
    if value.undecided:
        return UNDECIDED
    return HOLDS if value.low > limit else FAILS if value.high < limit else UNDECIDED


def missing(reason: str, role: str | None = None) -> Finding:
    """Return a finding without a measurement."""
    return Finding(NOT_MEASURED, reason, role=role)
