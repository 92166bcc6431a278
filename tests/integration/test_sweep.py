"""Plans run by Ray Tune on a real cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from rayexp.config import RunConfig
from rayexp.reports import table
from rayexp.stages import GRPO, Evaluate
from rayexp.store.artifacts import Store
from rayexp.store.index import StoreIndex
from rayexp.studies import STUDIES, Grid, all_stages
from rayexp.studies.presets import SCALES
from rayexp.sweep import preflight, scheduler
from rayexp.sweep.plan import Plan
from tests.fixtures import shell
from tests.fixtures.checkout import ROOT
from tests.fixtures.factories import evaluate, grpo, pretrain, sft


def plan_of(stages, store) -> Plan:
    return Plan.of("test", stages, Store(store).finished_ids())


def sampled_by_torch(stage):
    """Return the stage without an engine. An engine takes long to start, and other tests have one."""
    if isinstance(stage, Evaluate):
        return Evaluate.model_validate(dict(stage) | {"init": sampled_by_torch(stage.init)})
    return GRPO.model_validate(dict(stage) | {"sampler": "torch"}) if isinstance(stage, GRPO) else stage


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_scaling_runs_at_toy_width_and_rollouts_are_kept(cluster, tmp_path):
    """Run decoders of 4 and 8 layers, one stage reinforced from another (a chain), and keep every completion."""
    stages = [
        sampled_by_torch(stage) for stage in all_stages(STUDIES["scaling"](SCALES["toy"], Grid((0.5,), (0.1,), (0,))))
    ]
    last = next(stage for stage in reversed(stages) if isinstance(stage, GRPO))
    again = grpo(
        last, steps=2, group_size=2, kl_beta=0.0, updates=2, kl_in="reward", advantage="mean_only", sampler="torch"
    )
    stages = [*stages, again, evaluate(again)]
    run_config = RunConfig(store=str(tmp_path), keep_rollouts=True)
    plan = plan_of(stages, run_config.store)
    assert {stage.root.decoder.layers for stage in plan.stages} == {4, 8}
    outcome = scheduler.run(plan, run_config)
    assert not outcome.failed
    assert not outcome.blocked
    store = Store(run_config.store)
    plan = plan_of(stages, run_config.store)
    assert not plan.to_run
    assert StoreIndex(store).specs([again.id]) == {again.id: again}

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

    measured = [evaluate(again, prompts_per_cell=7), evaluate(again.root, prompts_per_cell=7)]
    outcome = scheduler.run(plan_of(measured, run_config.store), run_config)
    assert not outcome.failed
    assert not outcome.blocked
    assert not plan_of(measured, run_config.store).to_run, "what is finished can't be measured once more"


def test_a_plan_that_can_never_fit_is_refused_with_needs_and_has(cluster, tmp_path):
    plan = plan_of([grpo(sft(pretrain()))], str(tmp_path))
    with pytest.raises(preflight.PreflightError) as refusal:
        preflight.require_resources(plan, RunConfig(store=str(tmp_path), learner_cpus=64))
    assert "rollout trial needs" in str(refusal.value)
    assert "cluster has" in str(refusal.value)
    assert "64.5" in str(refusal.value)
    preflight.require_resources(plan, RunConfig(store=str(tmp_path)))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_readers_questions_become_a_page_on_a_cluster(cluster, tmp_path):
    """Type one command of a page as it stands there, in a folder of the reader's; other tests prove the rest without
    Ray. Trials have folders of their own, and have to find the files of the reader's folder."""
    text = (ROOT / "docs/bring-your-own.md").read_text()
    for name, content in shell.files(text).items():
        (tmp_path / name).write_text(content)
    (words,) = [each for each in shell.commands(text) if each[:3] == ["rayexp", "run", "my_questions:capitals"]]
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [Path(sys.executable).parent / words[0], *words[1:]],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = (tmp_path / "runs/studies").glob("my_questions.capitals-toy*/report/index.html")
    assert "capitals" in page.read_text()
