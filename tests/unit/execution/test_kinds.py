"""The contract of kinds of stage and their runners. Every existing kind is tested."""

import inspect

import pytest

from rayexp.execution import runner
from rayexp.rl.learner import Learner
from rayexp.stages import KINDS, RootStage, kind_in
from rayexp.stages.base import ChildStage
from rayexp.stages.rollouts import ROLLOUT_METRICS, RolloutStage

every_kind = pytest.mark.parametrize("kind", KINDS)
#: Metrics that the loop of a pool logs itself for each of its stages.
LOGGED = {"train": {"learning_rate", "tokens_per_s"}, "rollout": set(), "measure": set()}
#: Kinds that train nothing.
WITHOUT_STEPS = {"pretrained"}


@every_kind
def test_a_kind_is_a_root_or_a_child_and_says_what_it_is_called(kind):
    stage = KINDS[kind]
    assert issubclass(stage, RootStage) != issubclass(stage, ChildStage)
    assert issubclass(stage, RolloutStage) == (stage.pool == "rollout")
    assert stage.name
    assert kind_in(f"{kind}-0123456789abcdef") == kind


@every_kind
def test_the_runner_of_a_kind_has_what_its_pool_asks_for(kind):
    module = runner(KINDS[kind].model_construct())
    match KINDS[kind].pool:
        case "train":
            names = {"run": 3} if kind in WITHOUT_STEPS else {"initial": 3, "batch": 2, "loss_start": 1}
            assert {name: len(inspect.signature(getattr(module, name)).parameters) for name in names} == names
        case "rollout":
            assert issubclass(module.Learner, Learner)
        case "measure":
            assert len(inspect.signature(module.measure).parameters) == 2


@every_kind
def test_the_metrics_of_a_kind_are_named_after_it(kind):
    stage = KINDS[kind]
    own = {metric.name for metric in stage.metrics if metric not in ROLLOUT_METRICS}
    assert all(name.startswith(f"{kind}/") for name in own)
    assert kind in WITHOUT_STEPS or {f"{kind}/{name}" for name in LOGGED[stage.pool]} <= own
    assert set(ROLLOUT_METRICS) <= set(stage.metrics) or stage.pool != "rollout"
