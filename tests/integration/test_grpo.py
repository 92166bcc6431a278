"""A GRPO stage by itself, with vLLM: interrupted and resumed, and run by workers that have served another stage."""

import pytest

from rayexp.config import RunConfig
from rayexp.errors import StageError
from rayexp.execution import rollout_loop, supervised
from rayexp.store.artifacts import Store
from tests.fixtures import crash_harness
from tests.fixtures.artifacts import logged, weights_digest
from tests.fixtures.factories import evaluate, grpo, pretrain, sft


class StopHereError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("advantage", ["group_std", "critic"])
def test_an_interrupted_stage_goes_on_bitwise_and_warm_workers_change_nothing(
    cluster, tmp_path, monkeypatch, advantage
):
    monkeypatch.setattr(rollout_loop, "group_rewards", crash_harness.odd_rewards)
    stage = grpo(sft(pretrain()), steps=5, advantage=advantage)
    run_config = RunConfig(store=str(tmp_path / "a"), checkpoint_every_s=0, keep_rollouts=True)
    elsewhere = run_config.model_copy(update={"store": str(tmp_path / "b")})
    for store in (run_config, elsewhere):
        supervised.run_in_process(list(stage.lineage[:-1]), store, lambda report: None)
    steps = []

    def stop_after_step_3(report):
        steps.append(report["step"])
        if report["step"] == 3:
            raise StopHereError

    with pytest.raises(StageError, match=r"grpo-id-b0\.1, step 3: StopHereError"):
        rollout_loop.run(stage, [], run_config, stop_after_step_3)
    assert not Store(run_config.store).finished(stage.id)
    rollout_loop.run(stage, [evaluate(stage)], run_config, lambda report: steps.append(report["step"]))
    assert steps == [1, 2, 3, 3, 4, 5]  # step 3 was not checkpointed yet

    rollout_loop.run(stage, [], elsewhere, lambda report: None)  # undisturbed, by the workers that ended the other run
    resumed, whole = Store(run_config.store), Store(elsewhere.store)
    assert weights_digest(resumed, stage) == weights_digest(whole, stage)
    assert logged(resumed, stage) == logged(whole, stage)
    assert resumed.table(stage.id, "rollouts.parquet").equals(whole.table(stage.id, "rollouts.parquet"))
    assert resumed.finished(evaluate(stage).id)
    assert weights_digest(resumed, stage) != weights_digest(resumed, stage.init)
