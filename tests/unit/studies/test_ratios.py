"""OOD ratios from a search: it reaches its targets, reports those that it can't reach, and can be resumed."""

import math

import pandas as pd
import pytest
from scipy.special import expit, logit

from rayexp.experiment import Experiment
from rayexp.stages import Stage
from rayexp.studies import ratios
from rayexp.studies.ratios import AIMS, CLOSE, ROUNDS, START, chosen_ratios, next_ratios
from rayexp.sweep.plan import Plan

WHOLE = AIMS["auto"]
AUTO = Experiment(study="demo", scale="toy", ood_ratios=("auto",))


def searched(law):
    """Return the ratios that a search tries for a decoder with mean Q by ``law``, and the number of rounds."""
    tried, pending, rounds = {}, START, 0
    while pending:
        tried |= {ratio: law(ratio) for ratio in pending}
        pending, rounds = next_ratios(tried, WHOLE), rounds + 1
    return tried, rounds


@pytest.mark.parametrize("middle", [3e-5, 2e-3, 0.02, 0.2])
@pytest.mark.parametrize("steepness", [1.0, 2.0, 4.0])
def test_every_target_is_met_wherever_the_mass_rises(middle, steepness):
    tried, rounds = searched(lambda ratio: float(expit(steepness * math.log(ratio / middle))))
    assert rounds <= ROUNDS + 3
    for target in WHOLE.targets:
        reached = tried[0.5] >= target
        closest = min(abs(logit(q) - logit(target)) for q in tried.values())
        assert closest <= CLOSE or not reached, (target, tried)
    assert set(WHOLE.ends) <= set(chosen_ratios(tried, WHOLE))
    assert len(chosen_ratios(tried, WHOLE)) <= len(WHOLE.targets) + len(WHOLE.ends)


def test_a_mass_that_jumps_ends_the_search_and_keeps_both_sides():
    tried, _ = searched(lambda ratio: 4e-4 if ratio < 0.0123 else 0.95)
    assert len(tried) <= len(START) + 12
    below, above = max(r for r in tried if r < 0.0123), min(r for r in tried if r > 0.0123)
    assert above / below < 1.1
    assert {below, above} & set(chosen_ratios(tried, WHOLE))


def test_a_mass_that_does_not_rise_everywhere_is_searched_all_the_same():
    """Give one seed more mass at 0.01 than at 0.03."""
    noisy = {0.001: 1e-4, 0.01: 0.4, 0.1: 0.2, 0.5: 0.99}
    assert all(0.001 < ratio < 0.5 for ratio in next_ratios(noisy, WHOLE))


def rows_of(q: float) -> pd.DataFrame:
    return pd.DataFrame({"role": ["ood", "id"], "q": [q, 1.0], "sampled": [0, 0], "answer_correct": [0, 0]})


def course(experiment: Experiment, law, finished: dict[str, Stage]) -> list[list[str]]:
    """Return the ids that an experiment wants in each round, with all stages of earlier rounds finished."""
    asked = []

    def measured(stage: Stage) -> pd.DataFrame | None:
        return rows_of(law(stage)) if stage.id in finished else None

    while True:
        plan = Plan.of("demo", experiment.wanted(measured).stages, ())
        if asked and list(plan.labels) == asked[-1]:
            return asked
        asked.append(list(plan.labels))
        finished.update({stage.id: stage for stage in plan.stages})


def law(stage: Stage) -> float:
    return float(expit(2 * math.log(stage.root.ood_ratio / 0.02)))


def test_pilots_come_first_and_the_study_goes_on_at_the_ratios_that_they_find():
    finished: dict[str, Stage] = {}
    first, *_, last = course(AUTO, law, finished)
    assert {stage.kind for id_ in first if (stage := finished[id_])} == {"pretrain", "sft", "evaluate"}
    assert {finished[id_].root.ood_ratio for id_ in first} == set(START)
    with_policies = {stage.root.ood_ratio for id_ in last if (stage := finished[id_]).kind == "grpo"}
    assert set(WHOLE.ends) < with_policies
    assert len(with_policies) == len(WHOLE.ends) + len(WHOLE.targets)
    assert set(first) <= set(last)


def test_an_interrupted_search_takes_the_same_course():
    """Start from the results of the first rounds, and from all results. Both lead to the same stages."""
    whole: dict[str, Stage] = {}
    asked = course(AUTO, law, whole)
    for rounds in range(len(asked)):
        again = course(AUTO, law, {id_: whole[id_] for id_ in asked[rounds]})
        assert again[-1] == asked[-1]
        assert again == asked[-len(again) :]


def test_each_decoder_is_searched_by_itself():
    """Let the deeper one need fewer OOD samples."""
    deeper = Experiment(study="scaling", scale="toy", ood_ratios=("auto",))
    finished: dict[str, Stage] = {}

    def by_depth(stage: Stage) -> float:
        return float(expit(2 * math.log(stage.root.ood_ratio * stage.root.decoder.layers / 0.1)))

    last = course(deeper, by_depth, finished)[-1]
    found: dict[int, set[float]] = {4: set(), 8: set()}
    for stage in map(finished.__getitem__, last):
        if stage.kind == "grpo":
            found[stage.root.decoder.layers].add(stage.root.ood_ratio)
    assert found[4] != found[8]
    said = deeper.wanted(lambda stage: rows_of(by_depth(stage))).messages
    assert sum("4 layers" in sentence for sentence in said) == 1


def test_it_says_what_is_certain_and_then_what_was_found():
    pilots, limit = AUTO.wanted(lambda stage: None).messages
    assert pilots == f"ood_ratios auto: {len(START)} pilot runs first; their results choose the other ratios"
    most = int(limit.split("at most about ")[1].split()[0])
    finished: dict[str, Stage] = {}
    course(AUTO, law, finished)
    assert len(finished) <= most
    (after,) = AUTO.wanted(lambda stage: rows_of(law(stage))).messages
    assert after.startswith("ood_ratios auto: 0, ")


def test_no_mass_even_at_the_largest_ratio_is_said_and_the_study_ends_with_what_it_has():
    wanted = AUTO.wanted(lambda stage: rows_of(1e-9))
    assert {stage.root.ood_ratio for stage in wanted.stages if stage.kind == "grpo"} == set(WHOLE.ends)
    assert sum("the largest ratio has less" in sentence for sentence in wanted.messages) == len(WHOLE.targets)


def test_ratios_of_ones_own_stand_beside_those_that_are_found():
    both = Experiment(study="demo", scale="toy", ood_ratios=("auto", 0.2)).wanted(lambda stage: rows_of(law(stage)))
    assert 0.2 in {stage.root.ood_ratio for stage in both.stages if stage.kind == "grpo"}


def test_a_study_without_policies_has_nothing_to_search_for(monkeypatch):
    supervised = [stage for stage in Experiment(scale="toy").stages() if stage.pool == "train"]
    with pytest.raises(ValueError, match=r"ood_ratios='auto' needs a study that draws rollouts"):
        ratios.search(lambda *_: supervised, lambda _: None)


def test_where_several_completions_are_right_samples_are_counted():
    sampled = rows_of(1e-12).assign(sampled=16, answer_correct=8)
    assert ratios._mass(sampled) == 0.5
