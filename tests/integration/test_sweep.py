"""Plans run by Ray Tune on a real cluster, with real vLLM."""

import pytest

from rayexp.presets import SCALES
from rayexp.report import table
from rayexp.spec import Execution
from rayexp.store import Store
from rayexp.studies import STUDIES, Grid
from rayexp.sweep import preflight, tune
from rayexp.sweep.plan import Plan
from tests.integration.chains import evaluate, grpo, pretrain, sft


def plan_of(stages, store) -> Plan:
    return Plan.of("test", stages, Store(store).finished_ids())


@pytest.mark.timeout(600)
def test_scaling_runs_at_toy_width_and_rollouts_are_kept(cluster, tmp_path):
    """Two decoders of 4 and 8 layers, one stage reinforced from another (a chain), every completion on record."""
    stages = STUDIES["scaling"](SCALES["toy"], Grid((0.5,), (0.1,), (0,)))
    last = next(stage for stage in reversed(stages) if stage.id.startswith("grpo"))
    again = grpo(last, steps=2, group_size=2, kl_beta=0.0, updates=2, kl_in="reward", advantage="mean_only")
    stages = [*stages, again, evaluate(again)]
    execution = Execution(store=str(tmp_path), keep_rollouts=True, rollout_workers=2, rollout_cpus=0.25)
    plan = plan_of(stages, execution.store)
    assert {stage.root.decoder.layers for stage in plan.stages} == {4, 8}
    outcome = tune.run(plan, execution)
    assert not outcome.failed
    assert not outcome.blocked
    store = Store(execution.store)
    plan = plan_of(stages, execution.store)
    assert not plan.to_run
    assert store.spec(again.id) == again

    rollouts = store.table(last.id, "rollouts.parquet").to_pandas()
    assert len(rollouts) == last.steps * last.prompts_per_step * last.group_size
    assert list(rollouts.weight_version) == list(rollouts.step), "rollouts are not on-policy"
    assert rollouts.logprobs.map(max).max() <= 0
    assert set(rollouts.reward) <= {0.0, 1.0}

    curves = table.curves(plan, store)
    mismatch = curves[curves.metric == "grpo/max_logprob_mismatch"].value
    assert len(mismatch)
    assert mismatch.max() < 1e-3
    results = table.results(plan, store)
    assert set(results.kind) == {"pretrain", "sft", "grpo"}
    assert results[results.kind == "grpo"].init_q.notna().all()


def test_a_failed_stage_blocks_its_descendants_and_nothing_else(cluster, tmp_path):
    doomed = pretrain(seed=1)
    good = pretrain(seed=2)
    execution = Execution(store=str(tmp_path), worker_failures=0)
    store = Store(execution.store)
    # A file where the stage's folder has to go: publishing it fails, on every attempt.
    store.files.write(f"stages/{doomed.id}", b"in the way")
    stages = [doomed, sft(doomed), grpo(sft(doomed)), good, evaluate(good)]
    plan = plan_of(stages, execution.store)
    outcome = tune.run(plan, execution)
    assert set(outcome.failed) == {doomed.id}
    assert outcome.blocked == {grpo(sft(doomed)).id}
    assert store.finished_ids() == {good.id, evaluate(good).id}


def test_a_plan_that_can_never_fit_is_refused_with_needs_and_has(cluster, tmp_path):
    plan = plan_of([grpo(sft(pretrain()))], str(tmp_path))
    with pytest.raises(preflight.PreflightError) as refusal:
        preflight.require_resources(plan, Execution(store=str(tmp_path), learner_cpus=64))
    assert "grpo trial needs" in str(refusal.value)
    assert "cluster has" in str(refusal.value)
    assert "64.5" in str(refusal.value)
    preflight.require_resources(plan, Execution(store=str(tmp_path)))
