"""Overrides of any setting of any stage. One with the usual value changes nothing, and different values stay apart."""

import re

import pandas as pd
import pytest

from rayexp.errors import RefusedError
from rayexp.experiment import NAME_LENGTH, Experiment
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters import Letters
from rayexp.stages import GRPO, KINDS, Stage
from rayexp.stages.settings import own
from rayexp.store.artifacts import Store
from rayexp.studies import all_stages
from rayexp.studies.overrides import Override, apply_overrides
from rayexp.sweep.plan import Plan
from rayexp.sweep.study import Study
from tests.fixtures import local_sweep


def asked(*texts: str, study: str = "demo", **given) -> Experiment:
    return Experiment(study=study, scale="toy", set=texts, **given)


def of_kind(kind: str, *texts: str) -> list[Stage]:
    return [stage for stage in Plan.of("demo", asked(*texts).stages(), ()).stages if stage.kind == kind]


USUAL = Plan.of("demo", asked().stages(), ()).stages
EVERY = [f"{stage.kind}.{name}" for kind in KINDS for stage in USUAL if stage.kind == kind for name in own(stage)]


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("grpo.group_size=16", "group_size", {16}),
        ("grpo.group_size=4,16", "group_size", {4, 16}),
        ("grpo.advantage=mean_only,group_std", "advantage", {"mean_only", "group_std"}),
        ("grpo.kl_beta=0", "kl_beta", {0.0}),
        ("grpo.optimiser.learning_rate=1e-4,0.5", "optimiser.learning_rate", {1e-4, 0.5}),
        ("pretrain.samples=2048", "samples", {2048}),
        ("pretrain.decoder.layers=1,2", "decoder.layers", {1, 2}),
        ("pretrain.task.seed=7", "task.seed", {7}),
        ("evaluate.prompts_per_cell=3", "prompts_per_cell", {3}),
    ],
)
def test_a_setting_has_the_values_that_it_is_given(text, field, values):
    found = of_kind(text.partition(".")[0], text)
    assert {own(stage)[field] for stage in found} == values


def test_rewards_may_be_named_and_summed():
    (stage, *_) = of_kind("grpo", "grpo.rewards=answer+0.5*letters")
    assert isinstance(stage, GRPO)
    assert [(type(reward), reward.weight) for reward in stage.rewards] == [(Answer, 1), (Letters, 0.5)]
    (same, *_) = of_kind("grpo", 'grpo.rewards=[{"kind":"answer"},{"kind":"letters","weight":0.5}]')
    assert same.id == stage.id


@pytest.mark.parametrize("name", dict.fromkeys(name for name in EVERY if not name.endswith(".kind")))
def test_every_setting_can_be_reached_and_its_usual_value_gives_the_same_ids(name):
    kind, _, setting = name.partition(".")
    stages = [stage for stage in asked().stages() if stage.root.ood_ratio == 0]
    (value, *_) = [own(each)[setting] for stage in stages for each in stage.lineage if each.kind == kind]
    override = Override(kind, setting, (value,))
    assert [stage.id for stage in all_stages(apply_overrides(stages, [override]))] == [stage.id for stage in stages]


def test_several_axes_are_crossed_and_share_what_they_can():
    stages = Plan.of("demo", asked("grpo.group_size=4,8", "grpo.updates=1,2").stages(), ()).stages
    assert {(own(s)["group_size"], own(s)["updates"]) for s in stages if s.kind == "grpo"} == {
        (4, 1),
        (4, 2),
        (8, 1),
        (8, 2),
    }
    assert len([stage for stage in stages if stage.kind == "pretrain"]) == len(of_kind("pretrain"))


def test_a_mixture_may_have_a_cell_whose_name_ends_with_a_plus():
    stages = [stage for stage in asked(study="gsm").stages() if "5+" in stage.root.task.cells("probe")]
    changed = all_stages(apply_overrides(stages, [Override("grpo", "mixture", ("4+0.5*5+",))]))
    mixtures = {tuple((each.kind, each.weight) for each in s.mixture) for s in changed if isinstance(s, GRPO)}
    assert mixtures == {(("4", 1.0), ("5+", 0.5))}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("group_size=4", "set='group_size=4' should be STAGE.SETTING=VALUE"),
        ("grpo.group_size=", "set='grpo.group_size=' should be STAGE.SETTING=VALUE"),
        ("grpu.group_size=4", "the stage 'grpu' of set='grpu.group_size' is not one of pretrain, "),
        ("grpu.group_size=4", "; did you mean 'grpo'?"),
        ("rft.rounds=4", "'rft.rounds' is not one of pretrain, evaluate, sft, grpo; did you mean 'sft'?"),
        ("grpo.grup_size=4", "set='grpo.grup_size' is not one of "),
        ("grpo.grup_size=4", "; did you mean 'grpo.group_size'?"),
        ("grpo.init.samples=4", "set='grpo.init.samples' is not one of "),
        ("grpo.group_size=1", "grpo.group_size=1 should be greater than or equal to 2"),
        ("grpo.group_size=x", "grpo.group_size='x' should be a valid integer"),
        ("grpo.advantage=mean", "grpo.advantage='mean' is not one of "),
        ("grpo.advantage=mean", "; did you mean 'mean_only'?"),
        ("grpo.optimiser.learning_rate=NaN", "grpo.optimiser.learning_rate=nan should be"),
        ("pretrain.task.graph=printed", "pretrain.decoder.context_tokens=64 should be at least 68"),
        ("grpo.rewards=answr", "grpo.rewards.kind='answr' is not one of "),
        ("grpo.rewards=answr", "; did you mean 'answer'?"),
        ("grpo.rewards=x*answer", "grpo.rewards.0.weight='x' should be a valid number"),
        ("grpo.mixture=id+0*ood", "grpo.mixture.1.weight=0.0 should be greater than 0"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_nearest(text, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        asked(text).stages()


def test_a_setting_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"set has grpo\.updates twice"):
        asked("grpo.updates=1", "grpo.updates=2").stages()


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ((), "demo-toy"),
        (("grpo.group_size=4",), "demo-toy"),  # toy's own value
        (("grpo.group_size=16",), "demo-toy-grpo.group_size-16"),
        (("grpo.group_size=4,16",), "demo-toy-grpo.group_size"),
        (("grpo.advantage=mean_only", "sft.epochs=3"), "demo-toy-grpo.advantage-mean_only-sft.epochs-3"),
        (("grpo.rewards=answer+0.5*letters",), "demo-toy-grpo.rewards-answer_0.5_letters"),
    ],
)
def test_a_study_is_named_after_what_differs(texts, name):
    assert asked(*texts).folder == name


def test_a_name_is_no_longer_than_a_name_may_be():
    many = [f"grpo.optimiser.{name}=0.5" for name in ("learning_rate", "weight_decay", "beta1", "beta2", "clip_norm")]
    names = {asked(*many).folder, asked(*many[:-1], "grpo.optimiser.clip_norm=2").folder}
    assert len(names) == 2
    assert max(map(len, names)) <= NAME_LENGTH


def test_an_axis_grows_and_another_setting_is_refused(tmp_path):
    def study(args: Experiment) -> tuple[Study, Plan]:
        return Study(Store(str(tmp_path)), "s", "demo", "toy", args.axes), Plan.of("demo", args.stages(), ())

    first, plan = study(asked("grpo.group_size=2,4"))
    first.add(plan)
    more, larger = study(asked("grpo.group_size=4,16"))
    more.require_one(larger)
    more.add(larger)
    other, single = study(asked("grpo.group_size=32"))
    other.require_one(single)  # the setting is an axis of this study
    with pytest.raises(RefusedError, match=r"with sft\.epochs=2, and this plan has 3"):
        other.require_one(study(asked("sft.epochs=3"))[1])


def test_stages_of_one_label_are_told_apart_everywhere(tmp_path, capsys):
    axes = ["--set", "grpo.group_size=2,3", "grpo.optimiser.learning_rate=1e-4,1e-3"]
    grid = ["--scale", "toy", "--ood-ratios", "0.5", "--store", str(tmp_path)]
    assert local_sweep.main([*grid, *axes, "--plan"]) == 0
    labels = [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("to run")]
    assert len(labels) == len(set(labels))
    assert local_sweep.main([*grid, *axes, "--set", "grpo.steps=1"]) == 0
    (table,) = tmp_path.glob("studies/*/results.parquet")
    rows = pd.read_parquet(table)
    grpo = rows[rows["kind"] == "grpo"]
    pairs = grpo[["grpo.group_size", "grpo.optimiser.learning_rate"]].drop_duplicates()
    assert sorted(pairs.itertuples(index=False, name=None)) == [(2, 1e-4), (2, 1e-3), (3, 1e-4), (3, 1e-3)]
    assert grpo["label"].nunique() == grpo["condition"].nunique() == 4
    assert rows[rows["kind"] == "sft"]["grpo.group_size"].isna().all()
    claims = pd.read_csv(table.with_name("claims.csv"))
    assert claims["condition"].nunique() == 4
