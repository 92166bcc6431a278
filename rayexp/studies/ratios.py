"""OOD ratios that are found by measuring: nobody knows beforehand where between nothing and saturation they lie.

A pilot is a chain of the study's first seed up to the model that a policy starts from, at one ratio. The search tries a
few of them, and then halves the logarithm of the interval around every ``TARGETS`` that none of them has met: so it
finds the ratios at which the mean correct mass Q of the OOD cells is about that, for each task, decoder and budget of a
study by itself. What it asks for next is a function of what has been measured, and of nothing else: a search that was
interrupted takes the same course again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from scipy.special import logit

from rayexp.formatting import number
from rayexp.stages import RootStage, Stage
from rayexp.studies.conditions import CONTROL, Condition, Wanted, all_stages, changed

if TYPE_CHECKING:
    import pandas as pd


class Aim(NamedTuple):
    """The ratios that a word stands for. targets: mean Q that they are to have; ends: ratios besides."""

    targets: tuple[float, ...]
    ends: tuple[float, ...]


#: auto: no sample, those with hardly any mass, little, a lot, and saturation, and the largest. low: of those the ones
#: at which it is in dispute whether GRPO finds anything.
AIMS = {"auto": Aim((0.001, 0.03, 0.3, 0.9), (0.0, 0.5)), "low": Aim((0.001, 0.03), (0.0,))}
#: Ratios that every search begins with, the largest that there is among them.
START = (0.001, 0.01, 0.1, 0.5)
#: A target is met where the odds of Q are within this factor of its own, as natural logarithm.
CLOSE = 0.7
#: Rounds after the first, each of which halves the intervals: after them a factor of 10 is one of 1.15.
ROUNDS = 4

#: All that a study wants with these ratios; of its first seed only if ``pilot`` is true.
AtRatios: TypeAlias = Callable[[Sequence[float], bool], Sequence[Wanted]]


class Measured(Protocol):
    """The results that there are by now, by measurement."""

    def __call__(self, stage: Stage, /) -> "pd.DataFrame | None":
        """Return the rows that a measurement found, one a test prompt, with ``q`` and the columns of
        ``evaluation.measure.SCHEMA``; None where it is not finished."""


@dataclass(frozen=True)
class Search:
    """The state of a search. wanted: what is by now, pilots first. said: a sentence for each task, decoder and budget,
    about the ratios that were found, and one for each target that none meets; before, one about what is certain and
    what it may become."""

    wanted: list[Wanted]
    said: tuple[str, ...]

    @property
    def stages(self) -> list[Stage]:
        return all_stages(self.wanted)


def search(at: AtRatios, measured: Measured, word: str = "auto") -> Search:
    """Go through the search as far as measurements are finished, and return what is wanted then.

    Where a study has conditions, the ratios are those of its control, because the others are compared with it at equal
    ones. word: of ``AIMS``. Raises ValueError if the study has no chains that a pilot could be cut from.
    """
    aim = AIMS[word]
    tried: dict[str, dict[float, float]] = {}
    pilots: list[Stage] = []
    pending: dict[str, tuple[float, ...]] = dict.fromkeys(_pilots(at(START, True)), START)
    if not pending:
        raise ValueError(f"ood_ratios={word!r} needs a study that draws rollouts, and this one draws none; give ratios")
    for _ in range(ROUNDS + 1):
        ratios = sorted({ratio for of in pending.values() for ratio in of})
        found = _pilots(at(ratios, True))
        asked = {(name, ratio): found[name][ratio] for name, of in pending.items() for ratio in of}
        pilots += asked.values()
        for (name, ratio), pilot in asked.items():
            if (rows := measured(pilot)) is None:
                return Search(list(pilots), (_begun(word, pilots, len(pending), at),))
            tried.setdefault(name, {})[ratio] = _mass(rows)
        if not (pending := {name: more for name, of in tried.items() if (more := next_ratios(of, aim))}):
            break
    said = [sentence for name, of in tried.items() for sentence in _said(word, name if len(tried) > 1 else "", of)]
    return Search([*pilots, *_at_chosen(at, {name: chosen_ratios(of, aim) for name, of in tried.items()})], tuple(said))


def _at_chosen(at: AtRatios, chosen: Mapping[str, tuple[float, ...]]) -> list[Wanted]:
    """Return what is wanted at the ratios that were chosen, by name of a root. Roots that were not searched have those
    of all of their task."""
    wanted = at(sorted({ratio for of in chosen.values() for ratio in of}), False)
    of_task: dict[str, set[float]] = {}
    for root in (stage.root for stage in all_stages(wanted)):
        of_task.setdefault(root.task.label, set()).update(chosen.get(_name(root), ()))
    return changed(
        wanted,
        lambda stages: [
            stage for stage in stages if _ratio(stage) in chosen.get(_name(stage.root), of_task[stage.root.task.label])
        ],
    )


def next_ratios(tried: Mapping[float, float], aim: Aim) -> tuple[float, ...]:
    """Return the ratios to try next. tried: mean Q by ratio. Empty where every target is met, or can't be."""
    wanted: dict[float, None] = {}
    for target in aim.targets:
        if _is_met(target, tried) or (ratio := _between(target, tried)) is None or ratio in tried:
            continue
        wanted[ratio] = None
    return tuple(wanted)


def chosen_ratios(tried: Mapping[float, float], aim: Aim) -> tuple[float, ...]:
    """Return the ratios of the study: for every target the one of those tried that comes closest, and the ends."""
    return tuple(sorted({*aim.ends, *(_closest(target, tried) for target in aim.targets if _reached(target, tried))}))


def _between(target: float, tried: Mapping[float, float]) -> float | None:
    """Return the middle, in logarithms, of the interval in which the target lies: below it the smallest ratio that was
    tried, or a tenth of that. None where no ratio has so much mass."""
    if not _reached(target, tried):
        return None
    ratios = sorted(tried)
    # The mass of one seed need not rise everywhere: the largest ratio that has too little counts, and the next one.
    below = [ratio for ratio in ratios[:-1] if tried[ratio] < target]
    low = below[-1] if below else ratios[0] / 100
    high = next(ratio for ratio in ratios if ratio > low)
    return float(f"{(low * high) ** 0.5:.2g}")


def _reached(target: float, tried: Mapping[float, float]) -> bool:
    """Return whether the largest ratio has as much mass as the target, or nearly."""
    largest = tried[max(tried)]
    return largest >= target or _distance(largest, target) <= CLOSE


def _is_met(target: float, tried: Mapping[float, float]) -> bool:
    return _distance(tried[_closest(target, tried)], target) <= CLOSE


def _closest(target: float, tried: Mapping[float, float]) -> float:
    return min(tried, key=lambda ratio: (_distance(tried[ratio], target), ratio))


def _distance(mass: float, target: float) -> float:
    """Return the difference of two masses in log-odds."""
    return abs(float(logit(mass) - logit(target)))


def _mass(rows: "pd.DataFrame") -> float:
    """Return the mean correct mass of the OOD cells: as a share of samples where several completions are right."""
    ood = rows[rows["role"] == "ood"]
    exact = not ood["sampled"].any()
    return float(ood["q"].mean() if exact else (ood["answer_correct"] / ood["sampled"]).mean())


def _begun(word: str, pilots: Sequence[Stage], searches: int, at: AtRatios) -> str:
    """Say what is certain of a search, and the most that its study can become."""
    aim = AIMS[word]
    ratios = [*aim.ends, *(0.1 + i / 100 for i in range(len(aim.targets)))]  # any that many
    whole = {each.id for stage in all_stages(at(ratios, False)) for each in stage.lineage}
    tried = searches * (len(START) + ROUNDS * len(aim.targets)) * max(len(pilot.lineage) for pilot in pilots)
    return (
        f"ood_ratios {word}: {len(pilots)} pilots so far, which decide what else is wanted; at most "
        f"{tried + len(whole)} stages in all"
    )


def _said(word: str, name: str, tried: Mapping[float, float]) -> list[str]:
    aim = AIMS[word]
    found = ", ".join(f"{tried[ratio]:.2g} at {number(ratio)}" for ratio in sorted(tried))
    ratios, what = ", ".join(map(number, chosen_ratios(tried, aim))), f"ood_ratios {word}{name and f' of {name}'}"
    sentences = [f"{what}: {ratios}; the mean Q of the pilots was {found}"]
    for target in aim.targets:
        if not _is_met(target, tried):
            why = "it rises past it in one step" if _reached(target, tried) else "the largest ratio has less"
            sentences.append(f"{what}: no ratio has a mean Q of about {target:g}; {why}")
    return sentences


def _pilots(wanted: Sequence[Wanted]) -> dict[str, dict[float, Stage]]:
    """Return the measurements of the models that policies start from, by the name of their root and its ratio; where
    there are conditions, of the control's policies."""
    controls = [each for each in wanted if isinstance(each, Condition) and each.name == CONTROL]
    stages = all_stages(controls or wanted)
    measurements = {stage.parent.id: stage for stage in stages if stage.pool == "measure" and stage.parent}
    found: dict[str, dict[float, Stage]] = {}
    for stage in stages:
        if stage.pool == "rollout" and stage.parent and stage.parent.id in measurements:
            found.setdefault(_name(stage.root), {}).setdefault(_ratio(stage), measurements[stage.parent.id])
    return found


def _ratio(stage: Stage) -> float:
    return stage.root.ood_ratio


def _name(root: RootStage) -> str:
    """Return what tells a root from others whatever its ratio and seed: its task, and a hash of its settings."""
    settings = root.model_copy(update={"ood_ratio": 0.0, "seed": 0})
    return f"{root.task.label} with {root.decoder.layers} layers ({settings.id.partition('-')[2][:6]})"
