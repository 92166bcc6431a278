"""The plan: every stage once, parents first, grouped into trials; and exactly the unfinished rest."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayexp.config import RunConfig
from rayexp.experiment import nothing
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain
from rayexp.studies import STUDIES, Grid, all_stages, wanted_of
from rayexp.studies.presets import SCALES
from rayexp.sweep.plan import Plan
from rayexp.sweep.preflight import PreflightError, require_software
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import OPTIMISER, grpo, tiny_chain

WANTED = all_stages(STUDIES["composition"](SCALES["tiny"], Grid((0.0, 0.1), (0.0, 1.0), (0, 1))))
DRAWN_BY_VLLM = all_stages(STUDIES["demo"](SCALES["toy"], Grid((0.5,), (0.1,), (0,))))

#: Studies that are not about strings, and their tasks.
TEXT = {"gsm": {"gsm-depth", "gsm-template"}, "gym": {"sums", "backward", "paths"}}


def check(plan):
    """Check that every unfinished stage is in one trial. Its parent stage is finished, before it in the trial, or in a
    parent trial."""
    home = {stage.id: trial for trial in plan.trials for stage in trial.stages}
    assert sorted(home) == sorted(stage.id for stage in plan.to_run)
    assert sum(len(trial.stages) for trial in plan.trials) == len(plan.to_run)
    order = [trial.id for trial in plan.trials]
    assert len(set(order)) == len(order)
    for trial in plan.trials:
        before = set(plan.finished)
        for parent in trial.parents:
            assert order.index(parent) < order.index(trial.id)
            before |= {stage.id for stage in plan.trials[order.index(parent)].stages}
        for stage in trial.stages:
            assert stage.parent is None or stage.parent.id in before
            before.add(stage.id)


@pytest.mark.parametrize(
    ("transfer", "device", "allowed"),
    [
        ("nccl", "cpu", "needs GPUs; use object_store or gloo"),
        ("cuda_ipc", "cpu", "needs GPUs; use object_store or gloo"),
        ("gloo", "cuda", "is for CPUs; use object_store, nccl or cuda_ipc"),
    ],
)
def test_weights_that_would_go_between_devices_that_are_not_there_are_refused(transfer, device, allowed):
    run_config = RunConfig(device=device, weight_transfer=transfer)
    with pytest.raises(PreflightError, match=f"weight_transfer='{transfer}' {allowed}"):
        require_software(Plan.of("none", [], ()), run_config)


def test_gloo_is_not_for_vllm():
    with pytest.raises(PreflightError, match="'gloo' does not work with vLLM; use object_store"):
        require_software(Plan.of("any", DRAWN_BY_VLLM, ()), RunConfig(device="cpu", weight_transfer="gloo"))


def test_stages_are_shared_and_parents_come_first():
    plan = Plan.of("any", [*reversed(WANTED), *WANTED], ())
    ids = [stage.id for stage in plan.stages]
    assert len(ids) == len(set(ids)) == len({stage.id for stage in WANTED})
    for stage in plan.stages:
        assert stage.parent is None or ids.index(stage.parent.id) < ids.index(stage.id)
    kinds = [type(stage) for stage in plan.stages]
    assert [kinds.count(kind) for kind in (Pretrain, SFT, GRPO, Evaluate)] == [4, 4, 16, 24]


def test_what_a_wanted_stage_is_built_on_is_planned_too():
    chain = tiny_chain(StringTask(axis="depth"))
    assert Plan.of("any", [chain.evaluate], ()).stages == tuple(chain)


def test_the_name_of_a_trial_is_one_that_a_file_system_takes():
    last = next(stage for stage in WANTED if isinstance(stage, GRPO))
    for _ in range(30):
        last = grpo(last)
    names = [trial.name for trial in Plan.of("any", [last], ()).trials]
    assert len(last.label) > 255
    assert max(map(len, names)) < 200
    assert len(set(names)) == len(names)


def test_trials_are_a_supervised_one_for_each_pretraining_run_and_one_for_each_grpo_stage():
    plan = Plan.of("any", WANTED, ())
    check(plan)
    by_pool = {pool: [t for t in plan.trials if t.pool == pool] for pool in ("train", "rollout")}
    assert [len(trials) for trials in by_pool.values()] == [4, 16]
    for trial in by_pool["train"]:
        assert [type(stage) for stage in trial.stages] == [Pretrain, Evaluate, SFT, Evaluate]
        assert trial.parents == ()
        assert trial.id == trial.stages[0].id
    for trial in by_pool["rollout"]:
        assert [type(stage) for stage in trial.stages] == [GRPO, Evaluate]
        assert trial.parents == (trial.stages[0].root.id,)
        assert trial.id == trial.stages[0].id


@given(st.sets(st.sampled_from([stage.id for stage in WANTED])))
def test_a_resumed_plan_runs_exactly_the_rest(finished):
    """Vary the finished stages, and let some of their ancestors be missing."""
    plan = Plan.of("any", WANTED, {*finished, "grpo-of-another-study"})
    assert {stage.id for stage in plan.to_run} == {stage.id for stage in WANTED} - finished
    assert plan.finished == finished
    check(plan)


def test_a_finished_study_has_no_trials():
    plan = Plan.of("any", WANTED, [stage.id for stage in WANTED])
    assert plan.to_run == plan.trials == ()


def test_a_grpo_stage_that_is_finished_but_not_measured_is_measured_by_itself():
    chain = tiny_chain(StringTask(axis="depth"))
    plan = Plan.of("any", chain, [stage.id for stage in chain if stage != chain.evaluate])
    (trial,) = plan.trials
    assert (trial.id, trial.stages, trial.parents) == (chain.grpo.id, (chain.evaluate,), ())
    assert trial.pool == "train"


def test_descendants_of_a_failed_trial():
    """Plan a chain of three GRPO stages beside another one. Only descendants of the failed one are blocked."""
    first = tiny_chain(StringTask(axis="composition")).grpo
    second = GRPO(init=first, prompt_role="id", kl_beta=0.0, optimiser=OPTIMISER, seed=0)
    third = GRPO(init=second, prompt_role="id", kl_beta=0.0, optimiser=OPTIMISER, seed=0)
    beside = GRPO(init=first.init, prompt_role="id", kl_beta=0.0, optimiser=OPTIMISER, seed=0)
    plan = Plan.of("any", [third, beside, Evaluate(init=second)], ())
    check(plan)
    assert plan.descendants([first.id]) == {second.id, third.id}
    assert plan.descendants([second.id, beside.id]) == {third.id}
    assert plan.descendants([first.root.id]) == {first.id, second.id, third.id, beside.id}
    assert plan.descendants([]) == plan.descendants([third.id]) == set()


@pytest.mark.parametrize(("study", "tasks"), TEXT.items())
@pytest.mark.parametrize("scale", SCALES)
def test_a_study_without_strings_plans_at_every_scale_and_refuses_their_variants(scale, study, tasks):
    budget = SCALES[scale]
    plain = Grid(budget.ood_ratios[:2], budget.kl_betas, budget.seeds[:1])
    plan = Plan.of(study, wanted_of(STUDIES[study], budget, plain, nothing), ())
    assert {stage.root.task.label for stage in plan.stages} == tasks
    assert all(stage.flops > 0 for stage in plan.stages)
    for name, value in {"graph": "printed", "traversal": "positional", "completion_format": "trace"}.items():
        with pytest.raises(
            ValueError, match=f"{name}='{value}' should be '.*', because this study is not about strings"
        ):
            STUDIES[study](budget, replace(plain, **{name: value}))


@pytest.mark.parametrize("study", sorted(set(STUDIES) - set(TEXT)))
@pytest.mark.parametrize("scale", SCALES)
def test_every_study_plans_at_every_scale_in_every_variant_of_the_world(study, scale):
    budget, sizes = SCALES[scale], {"answer": set(), "trace": set()}  # only a trace has steps to reward
    ratios, seeds = budget.ood_ratios[:2], budget.seeds[:1]  # further ones add nothing new
    for variant in itertools.product(("hidden", "printed"), ("uniform", "positional"), ("answer", "trace")):
        grid = Grid(ratios, budget.kl_betas, seeds, *variant)
        plan = Plan.of(study, wanted_of(STUDIES[study], budget, grid, nothing), ())
        assert all(stage.flops > 0 for stage in plan.stages)
        tasks = [stage.root.task for stage in plan.stages]
        assert {(w.graph, w.traversal, w.completion_format) for w in tasks if isinstance(w, StringTask)} == {variant}
        assert {stage.id for stage in plan.stages} == {stage.id for trial in plan.trials for stage in trial.stages}
        runs = len({stage.root.id for stage in plan.stages})
        assert runs % len(ratios) == 0
        sizes[variant[2]].add(len(plan.stages))
    assert [len(found) for found in sizes.values()] == [1, 1]


def test_costs_grow_with_what_is_asked_for():
    chain = tiny_chain(StringTask(axis="composition"))
    traced = tiny_chain(StringTask(axis="composition", completion_format="trace"))
    pretrain, grpo = chain.pretrain, chain.grpo
    matrices = pretrain.decoder.parameters(64) - 64 * pretrain.decoder.width
    assert pretrain.flops == 6 * matrices * pretrain.task.max_tokens * pretrain.samples
    assert grpo.model_copy(update={"kl_beta": 0.0}).flops == grpo.flops * 8 / 10
    assert grpo.model_copy(update={"updates": 2}).flops == grpo.flops * 16 / 10
    assert grpo.model_copy(update={"advantage": "critic"}).flops == grpo.flops * 18 / 10
    assert grpo.model_copy(update={"advantage": "critic", "updates": 2}).flops == grpo.flops * 30 / 10
    assert traced.evaluate.flops > 16 * chain.evaluate.flops


def test_the_summary_counts():
    finished = [stage.id for stage in WANTED if isinstance(stage, Pretrain)]
    lines = Plan.of("composition", WANTED, finished).summary().splitlines()
    assert lines[0].startswith("plan of study composition: 48 stages")
    assert lines[0].endswith("20 trials to run")
    counts = {row[0]: row[1:4] for row in map(str.split, lines[2:])}
    assert counts["pretrain"] == ["4", "4", "0"]
    assert counts["grpo"] == ["16", "0", "16"]
    assert counts["total"] == ["48", "4", "44"]
    assert lines[-1] == "grid: OOD ratios 0, 0.1; β 0, 1; prompts of GRPO id, ood; seeds 0, 1"
