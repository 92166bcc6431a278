"""OOD ratios that a search finds by measuring, because the range between no mass and saturation is unknown beforehand.

A pilot is a chain of the study's first seed, at one ratio, up to the model from which GRPO starts. The search begins
with a few ratios. For each target that no pilot meets, it halves the interval around the target on a logarithmic scale.
So it finds ratios at which the mean correct mass Q of the OOD cells is about the target, separately for each task,
decoder and budget of a study. The next ratios depend on the measurements alone, so an interrupted search takes the same
course again.
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
    """The ratios that a word stands for. targets: values of mean Q to search for. ends: further, fixed ratios."""

    targets: tuple[float, ...]
    ends: tuple[float, ...]


#: auto: no OOD sample, ratios with hardly any mass, little, a lot, and near saturation, and the largest ratio. low:
#: those of them at which it is disputed whether GRPO finds anything.
AIMS = {"auto": Aim((0.001, 0.03, 0.3, 0.9), (0.0, 0.5)), "low": Aim((0.001, 0.03), (0.0,))}
#: First ratios of every search. The largest possible ratio is one of them.
START = (0.001, 0.01, 0.1, 0.5)
#: A target is met if the log-odds of Q differ from its log-odds by at most this (natural logarithm).
CLOSE = 0.7
#: Rounds after the first. Each halves the intervals, so an interval of a factor of 10 shrinks to one of 1.15.
ROUNDS = 4

#: A function that returns a study's stages and conditions at given ratios; with ``pilot`` only those of the first seed.
AtRatios: TypeAlias = Callable[[Sequence[float], bool], Sequence[Wanted]]


class Measured(Protocol):
    """The results so far, by measurement."""

    def __call__(self, stage: Stage, /) -> "pd.DataFrame | None":
        """Return the rows of a measurement, one a test prompt, with ``q`` and the columns of
        ``evaluation.measure.SCHEMA``; None if it is not finished."""


@dataclass(frozen=True)
class Search:
    """The state of a search.

    wanted: the stages and conditions so far, pilots first. messages: sentences for the user. After the search, one for
    each task, decoder and budget about its ratios, and one for each target that no ratio meets; before, one about the
    pilots. limit: before the end of the search, the largest possible number of stages; after it, None.
    """

    wanted: list[Wanted]
    messages: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def stages(self) -> list[Stage]:
        return all_stages(self.wanted)


def search(at: AtRatios, measured: Measured, word: str = "auto") -> Search:
    """Search as far as measurements are finished. Return the stages and conditions that are wanted then.

    If a study has conditions, the ratios are found for its control, because the others are compared with it at equal
    ratios. word: a key of ``AIMS``. Raises ValueError if the study has no chain with rollouts, from which a pilot could
    be cut.
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
                message = f"ood_ratios {word}: {len(pilots)} pilot runs first; their results choose the other ratios"
                return Search(list(pilots), (message,), _limit(aim, pilots, len(pending), at))
            tried.setdefault(name, {})[ratio] = _mass(rows)
        if not (pending := {name: more for name, of in tried.items() if (more := next_ratios(of, aim))}):
            break
    messages = [each for name, of in tried.items() for each in _messages(word, name if len(tried) > 1 else "", of)]
    chosen = {name: chosen_ratios(of, aim) for name, of in tried.items()}
    return Search([*pilots, *_at_chosen(at, chosen)], tuple(messages))


def _at_chosen(at: AtRatios, chosen: Mapping[str, tuple[float, ...]]) -> list[Wanted]:
    """Return the stages and conditions at the chosen ratios, which are given by name of a root. A root that was not
    searched gets the ratios of all searched roots of its task."""
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
    """Return the ratios to try next; none if every target is met or can't be met. tried: mean Q by ratio."""
    wanted: dict[float, None] = {}
    for target in aim.targets:
        if _is_met(target, tried) or (ratio := _between(target, tried)) is None or ratio in tried:
            continue
        wanted[ratio] = None
    return tuple(wanted)


def chosen_ratios(tried: Mapping[float, float], aim: Aim) -> tuple[float, ...]:
    """Return the ratios of the study: the ends, and for every reachable target the closest of the tried ratios."""
    return tuple(sorted({*aim.ends, *(_closest(target, tried) for target in aim.targets if _reached(target, tried))}))


def _between(target: float, tried: Mapping[float, float]) -> float | None:
    """Return the middle, on a logarithmic scale, of the interval of ratios in which the target lies. If the smallest
    tried ratio has too much mass, return a tenth of it. None if no ratio has enough mass."""
    if not _reached(target, tried):
        return None
    ratios = sorted(tried)
    # The mass of one seed need not rise everywhere. The interval goes from the largest ratio with too little mass to
    # the next ratio.
    below = [ratio for ratio in ratios[:-1] if tried[ratio] < target]
    low = below[-1] if below else ratios[0] / 100
    high = next(ratio for ratio in ratios if ratio > low)
    return float(f"{(low * high) ** 0.5:.2g}")


def _reached(target: float, tried: Mapping[float, float]) -> bool:
    """Return whether the largest ratio has at least the target's mass, or nearly so."""
    largest = tried[max(tried)]
    return largest >= target or _distance(largest, target) <= CLOSE


def _is_met(target: float, tried: Mapping[float, float]) -> bool:
    return _distance(tried[_closest(target, tried)], target) <= CLOSE


def _closest(target: float, tried: Mapping[float, float]) -> float:
    return min(tried, key=lambda ratio: (_distance(tried[ratio], target), ratio))


def _distance(mass: float, target: float) -> float:
    """Return the absolute difference of two masses in log-odds."""
    return abs(float(logit(mass) - logit(target)))


def _mass(rows: "pd.DataFrame") -> float:
    """Return the mean correct mass of the OOD cells. If several completions are right, estimate it from samples."""
    ood = rows[rows["role"] == "ood"]
    exact = not ood["sampled"].any()
    return float(ood["q"].mean() if exact else (ood["answer_correct"] / ood["sampled"]).mean())


def _limit(aim: Aim, pilots: Sequence[Stage], searches: int, at: AtRatios) -> int:
    """Return the largest possible number of stages, given the first pilots."""
    ratios = [*aim.ends, *(0.1 + i / 100 for i in range(len(aim.targets)))]  # only their number matters
    whole = {each.id for stage in all_stages(at(ratios, False)) for each in stage.lineage}
    tried = searches * (len(START) + ROUNDS * len(aim.targets)) * max(len(pilot.lineage) for pilot in pilots)
    return tried + len(whole)


def _messages(word: str, name: str, tried: Mapping[float, float]) -> list[str]:
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
    """Return the measurements of the models from which policies start, by name of their root and by ratio. If there are
    conditions, use only the control's policies."""
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
    """Return a name for a root that ignores its ratio and seed: its task, its layers, and a hash of its settings."""
    settings = root.model_copy(update={"ood_ratio": 0.0, "seed": 0})
    return f"{root.task.label} with {root.decoder.layers} layers ({settings.id.partition('-')[2][:6]})"
