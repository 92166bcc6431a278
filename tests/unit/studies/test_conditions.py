"""Conditions: their last stages, refusals, and the distinction of two conditions in lists of values and stores."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rayexp.errors import RefusedError
from rayexp.experiment import Experiment
from rayexp.stages import GRPO, Stage
from rayexp.store.artifacts import Store
from rayexp.studies.conditions import CONTROL, Condition, all_stages, changed, conditions_in, recorded, records
from rayexp.studies.grid import Grid, fine_tuned, pretrained, reinforced, with_evaluations
from rayexp.studies.overrides import apply_overrides, parse_overrides
from rayexp.studies.presets import SCALES
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study

TOY = SCALES["toy"]
GRID = Grid((0.0, 0.5), (0.1,), (0, 1))
BASES = pretrained(GRID.task("composition"), TOY, GRID)
TUNED = [fine_tuned(base, TOY) for base in BASES]


def named(name: str, ends: Sequence[Stage], **about) -> Condition:
    return Condition(name, [each for end in ends for each in with_evaluations(end.lineage, TOY)], **about)


def grpo(inits: Sequence[Stage] = TUNED, **settings) -> list[Stage]:
    return [reinforced(init, TOY, **{"prompt_role": "ood", "kl_beta": 0.1, **settings}) for init in inits]


CONTROLS, FREE = named(CONTROL, grpo()), named("no KL", grpo(kl_beta=0.0), objection="It holds.", source="us", k=8)


def test_a_condition_ends_where_nothing_of_it_goes_on():
    assert list(CONTROLS.ends) == grpo()
    assert list(named("no GRPO", TUNED).ends) == TUNED
    phases = [reinforced(end, TOY, prompt_role="ood", kl_beta=0.1) for end in grpo(group_size=2)]
    assert list(named("two phases", phases).ends) == phases


def test_a_condition_that_is_its_own_control_is_refused():
    with pytest.raises(ValueError, match=r"the conditions control and again are the same, because both end in .*grpo"):
        conditions_in([CONTROLS, named("again", grpo())])
    same = Experiment(study="objections", scale="toy", ood_ratios=(0.5,), set=("grpo.kl_beta=0.0",))
    with pytest.raises(ValueError, match="the conditions control and no KL are the same"):
        Plan.of("objections", same.wanted(lambda _: None).wanted, ())


def test_a_study_of_conditions_has_a_control():
    with pytest.raises(ValueError, match=r"none of the conditions \(no KL\) is named control; add that one"):
        conditions_in([FREE])
    assert conditions_in(all_stages([FREE])) == []


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"name": "a, b"}, "the name 'a, b' of a condition should be a text without"),
        ({"name": ""}, "the name '' of a condition should be"),
        ({"predicts": "mor"}, "in the condition 'x' predicts='mor' is not one of .*; did you mean 'more'"),
        ({"k": 0}, "in the condition 'x' k=0 should be at least 1"),
    ],
)
def test_a_bad_condition_is_refused(about, sentence):
    with pytest.raises(ValueError, match=sentence):
        Condition(**{"name": "x", "stages": [], **about})


def test_a_name_comes_first_and_then_what_differs_within_it():
    axis = apply_overrides([CONTROLS, FREE, *BASES], parse_overrides(["grpo.group_size=4,8"]))
    plan = Plan.of("any", axis, ())
    told = {plan.condition_names[stage.id] for stage in plan.trained if isinstance(stage, GRPO)}
    assert told == {f"{name}, group_size = {size}" for name in (CONTROL, "no KL") for size in (4, 8)}
    assert {plan.condition_names[stage.id] for stage in plan.trained if not isinstance(stage, GRPO)} == {""}
    assert len(set(plan.labels.values())) == len(plan.stages)


def test_what_is_changed_stays_in_its_condition():
    assert changed([CONTROLS, *BASES, FREE], list) == [CONTROLS, *BASES, FREE]
    (half, *_) = changed([CONTROLS], lambda stages: [stage for stage in stages if stage.root.ood_ratio])
    assert {stage.root.ood_ratio for stage in all_stages([half])} == {0.5}


def test_conditions_come_back_from_json_and_a_new_name_takes_over():
    known = {stage.id: stage for stage in all_stages([CONTROLS, FREE])}
    stored = json.loads(json.dumps(records([CONTROLS, FREE], {})))
    assert records(recorded(stored, known), {}) == stored
    (_, free) = recorded(stored, known)
    assert (free.name, free.about, free.ends) == (FREE.name, FREE.about, FREE.ends)
    renamed = records([CONTROLS, replace(FREE, name="free")], stored)
    assert (renamed["no KL"]["ends"], renamed["free"]["ends"]) == ([], [end.id for end in FREE.ends])
    more = records([CONTROLS, named("no KL", grpo(kl_beta=0.0, steps=9))], stored)
    assert len(more["no KL"]["ends"]) == 8


def test_a_store_keeps_the_conditions_of_all_that_was_asked_for(tmp_path):
    study = Study(Store(str(tmp_path)), "mine", "mine", "toy")
    first, second = Plan.of("mine", [CONTROLS, FREE], ()), Plan.of("mine", [CONTROLS], ())
    study.add(first)
    study.add(second)
    whole = study.whole(first, study.labels())
    assert [(each.name, set(each.ends)) for each in whole.conditions] == [
        (each.name, set(each.ends)) for each in (CONTROLS, FREE)
    ]
    assert whole.condition_names == first.condition_names
    with pytest.raises(RefusedError, match=r"is taken by stages with grpo\.steps=3, and this plan has 4"):
        study.add(Plan.of("mine", [named(CONTROL, grpo(steps=4))], ()))


def test_a_name_that_pilots_took_is_that_of_the_conditions_as_well(tmp_path):
    """Let a search train the control's roots before other conditions are planned."""
    study = Study(Store(str(tmp_path)), "mine", "mine", "toy")
    study.add(Plan.of("mine", BASES, ()))

    def without_positions(**more) -> list[Stage]:
        decoder = BASES[0].root.decoder.model_copy(update={"positions": "none"})
        return [base.model_copy(update={"decoder": decoder, **more}) for base in BASES]

    study.add(Plan.of("mine", [CONTROLS, named("no positions", without_positions())], ()))
    study.add(Plan.of("mine", BASES, ()))
    longer = named("no positions", without_positions(samples=500))
    with pytest.raises(RefusedError, match=r"is taken by stages with no positions: pretrain\.samples=\d+, and this "):
        study.add(Plan.of("mine", [CONTROLS, longer], ()))
