"""The reference of GRPO: the initial policy of a stage, or of a chain of such stages."""

from unittest import mock

import pytest
import torch

from rayexp.config import RunConfig
from rayexp.execution import rollout_loop, supervised
from rayexp.execution.grpo import Learner
from rayexp.models import io
from rayexp.rewards.answer import Answer
from rayexp.rewards.letters_sum import LettersSum
from rayexp.stages import GRPO
from rayexp.store.artifacts import Store
from rayexp.studies.grid import Grid, stage_chains
from rayexp.studies.presets import SCALES
from rayexp.tasks.strings import StringTask
from tests.fixtures import crash_harness
from tests.fixtures.factories import MICRO, grpo, pretrain, sft

TUNED = sft(pretrain(decoder=MICRO, samples=256))
FIRST = grpo(TUNED, sampler="torch", steps=2, reference="root")
SECOND = grpo(FIRST, sampler="torch", steps=2, kl_estimator="k3", advantage="critic")
THIRD = grpo(SECOND, sampler="torch", steps=2, reference="root")


@pytest.fixture(scope="module")
def run_config(tmp_path_factory):
    """Return a configuration with the finished chain in its store."""
    run_config = RunConfig(store=str(tmp_path_factory.mktemp("chain")))
    with (
        mock.patch.object(rollout_loop, "group_rewards", crash_harness.odd_rewards),
        mock.patch.object(rollout_loop, "acquire_workers", crash_harness.local_workers),
    ):
        supervised.run_in_process(list(TUNED.lineage), run_config, lambda report: None)
        for stage in (FIRST, SECOND, THIRD):
            rollout_loop.run(stage, [], run_config, lambda report: None)
    return run_config


def kl(run_config, stage):
    """Return the KL that a stage logged at each step."""
    curves = Store(run_config.store).table(stage.id, "metrics.parquet").to_pandas()
    return curves[curves.metric == "grpo/kl"].value.tolist()


def test_it_is_named_by_the_chain():
    assert FIRST.reference_stage == TUNED
    assert SECOND.reference_stage == FIRST
    assert THIRD.reference_stage == TUNED
    assert [stage.models for stage in (FIRST, SECOND, THIRD)] == [(TUNED,), (FIRST,), (SECOND, TUNED)]
    assert grpo(SECOND, reference="root", kl_beta=0.0).models == (SECOND,)


def test_a_policy_that_equals_its_reference_has_a_kl_of_zero_and_one_of_a_later_stage_has_not(run_config):
    for stage in (FIRST, SECOND):
        at_first, later = kl(run_config, stage)
        assert at_first == 0 < later
    assert kl(run_config, THIRD)[0] > 0


def test_the_learner_of_a_later_stage_holds_the_weights_of_the_first_ones_init(run_config):
    """Compare bitwise. Also check that they are ready for the policy's kernels."""
    local = crash_harness.LocalLearner()
    local.begin(THIRD, run_config, Learner)
    learner = local.actor._learner
    assert isinstance(learner, Learner)
    assert learner.reference is not None
    with Store(run_config.store).model(TUNED.id) as folder:
        expected = io.load(folder).state_dict()
    found = learner.reference.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not all(torch.equal(found[name], tensor) for name, tensor in learner.model.state_dict().items())
    assert learner.reference.training
    assert all(parameter.requires_grad for parameter in learner.reference.parameters())


def test_a_study_may_have_phases():
    """Use a dense reward first, then the answer. Each phase is measured."""
    budget = SCALES["toy"]
    task = StringTask(axis="composition")
    phases = [{"rewards": (LettersSum(),), "steps": 3}, {"reference": "root"}]
    stages = stage_chains(task, budget, Grid((0.5,), (0.0, 0.1), (0,)), ("ood",), phases=phases, advantage="mean_only")
    assert [stage.kind for stage in stages] == ["pretrain", "evaluate", "sft", "evaluate"] + ["grpo", "evaluate"] * 4
    reinforced = [stage for stage in stages if isinstance(stage, GRPO)]
    for dense, answer in zip(reinforced[::2], reinforced[1::2], strict=True):
        assert answer.init == dense
        assert answer.reference_stage == dense.init == stages[2]
        assert (dense.rewards, dense.steps) == ((LettersSum(),), 3)
        assert (answer.rewards, answer.steps) == ((Answer(),), budget.grpo_steps)
        assert dense.advantage == answer.advantage == "mean_only"
