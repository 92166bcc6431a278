"""A plan is refused unless all parts of a trial fit on nodes at once, each part on one node, with shares of GPUs."""

import itertools
import math
import random

import pytest

from rayexp.config import RunConfig
from rayexp.distributed import autoscaling
from rayexp.sweep import placement, preflight
from rayexp.sweep.placement import Node, fit_together, how_many, nodes_of
from rayexp.sweep.plan import Plan
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain

PLAN = Plan.of("test", tiny_chain(StringTask(axis="composition")), ())
ONE_CPU = {"CPU": 1.0}


def refusal(nodes, gpus=0.0, **settings):
    with pytest.raises(preflight.PreflightError) as refused:
        preflight.require_resources(PLAN, RunConfig(**settings).resolve(gpus), nodes_of(nodes))
    return str(refused.value)


def test_what_fits_the_sum_but_no_node_is_refused_with_needs_and_has():
    title, *rows = refusal([ONE_CPU, ONE_CPU], train_cpus=2).splitlines()
    assert title == "the plan needs more than the cluster can ever have: no node has room for a training rank"
    assert [row.split() for row in rows] == [
        ["CPU", "GPU", "memory"],
        ["training", "trial", "needs", "2", "0", "652.3", "MB"],
        ["a", "training", "rank", "2", "0", "652.3", "MB"],
        ["rollout", "trial", "needs", "1", "0", "2.0", "GB"],
        ["a", "learner", "0.5", "0", "1.3", "GB"],
        ["a", "rollout", "worker", "0.5", "0", "658.5", "MB"],
        ["cluster", "has", "2", "0", "unknown"],
        ["each", "of", "2", "nodes", "1", "0", "unknown"],
    ]


def test_what_no_node_has_the_memory_for_is_refused():
    title, *rows = refusal([{"CPU": 4.0, "memory": 1.2e9}] * 2).splitlines()
    assert title == "the plan needs more than the cluster can ever have: no node has room for a learner"
    assert rows[-1].split() == ["each", "of", "2", "nodes", "4", "0", "1.0", "GB"]


def test_no_more_trials_run_at_once_than_there_is_memory_for():
    nodes = nodes_of([{"CPU": 64.0, "memory": 9e9}])
    many = Plan.of("test", [s for i in range(9) for s in tiny_chain(StringTask(axis="composition"), seed=i)], ())
    assert preflight.concurrency(many, RunConfig().resolve(0), nodes) == 4


@pytest.mark.parametrize(
    ("nodes", "settings", "reason"),
    [
        ([ONE_CPU] * 3, {"learner_cpus": 2}, "no node has room for a learner\n"),
        ([ONE_CPU] * 3, {"rollout_cpus": 2}, "no node has room for a rollout worker\n"),
        ([ONE_CPU] * 9, {"learner_cpus": 2, "rollout_cpus": 2}, "for a learner or a rollout worker\n"),
        ([{"CPU": 0.0}], {}, "no node has room for a training rank or a learner or a rollout worker\n"),
        ([ONE_CPU] * 3, {"rollout_workers": 6}, "no room for a whole rollout trial\n"),
        ([{"CPU": 3.0}, ONE_CPU], {"train_workers": 3, "train_cpus": 1.5}, "no room for a whole training trial\n"),
        ([{"CPU": 8.0, "GPU": 1.0}] * 2, {"gpus": 2, "train_gpus": 2}, "no node has room for a training rank\n"),
        (
            [{"CPU": 8.0, "GPU": 2.0}],
            {"gpus": 2, "learner_gpus": 0.6, "rollout_gpus": 0.6, "rollout_workers": 2},
            "whole rollout",
        ),
    ],
)
def test_the_reason_names_what_has_no_room(nodes, settings, reason):
    assert reason in refusal(nodes, **settings)


@pytest.mark.parametrize(
    ("nodes", "settings"),
    [
        ([ONE_CPU], {}),
        ([ONE_CPU] * 3, {"train_workers": 3, "rollout_workers": 5}),
        ([{"CPU": 2.0}, ONE_CPU], {"train_cpus": 2, "learner_cpus": 2, "rollout_cpus": 1}),
        ([{"CPU": 8.0, "GPU": 1.0}], {"gpus": 1}),
        ([{"CPU": 8.0, "GPU": 1.0}] * 2, {"gpus": 2, "learner_gpus": 1, "rollout_gpus": 1}),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus": 2, "train_gpus": 2}),
        ([{"CPU": 2.0, "GPU": 1.0}], {"gpus": 1, "weight_transfer": "cuda_ipc"}),
    ],
)
def test_what_fits_is_not_refused(nodes, settings):
    gpus = settings.pop("gpus", 0)
    preflight.require_resources(PLAN, RunConfig(**settings).resolve(gpus), nodes_of(nodes))


def test_actors_that_hand_over_memory_of_a_gpu_need_one_node():
    apart = [{"CPU": 0.5, "GPU": 1.0}] * 2 + [{"CPU": 1.0}]
    text = refusal(apart, gpus=2, weight_transfer="cuda_ipc", train_gpus=0)
    assert "no node has room for a learner with its rollout workers" in text
    settings = RunConfig(weight_transfer="cuda_ipc", rollout_workers=2, device="cuda").resolve(4)
    with pytest.raises(preflight.PreflightError, match=r"on one GPU, and they ask for 1\.5; lower learner_gpus"):
        preflight.require_software(PLAN, settings)


def test_several_ranks_of_a_learner_hand_weights_on_through_the_object_store():
    settings = RunConfig(weight_transfer="gloo", learner_workers=2).resolve(0)
    with pytest.raises(preflight.PreflightError, match="learner_workers=2 does not work with weight_transfer='gloo', "):
        preflight.require_software(PLAN, settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "tensor_parallel=3 needs the sampler vllm, but .* has sampler='torch'"),
        (
            {"device": "cuda", "rollout_gpus": 1},
            "tensor_parallel=3 needs a GPU for each rank; set rollout_gpus=3 instead of 1",
        ),
    ],
)
def test_an_engine_that_can_not_be_divided_is_refused(settings, reason):
    with pytest.raises(preflight.PreflightError, match=reason):
        preflight.require_software(PLAN, RunConfig(tensor_parallel=3, **settings).resolve(4))


def test_ranks_of_an_engine_divide_its_heads_and_have_a_gpu_each():
    grpo = tiny_chain(StringTask(axis="composition")).grpo.model_copy(update={"sampler": "vllm"})
    plan = Plan.of("test", [*grpo.lineage], {stage.id for stage in grpo.lineage[:-1]})
    settings = RunConfig(tensor_parallel=2, device="cuda").resolve(4)
    assert settings.rollout_gpus == 2
    with pytest.raises(
        preflight.PreflightError,
        match="tensor_parallel=2 should be a divisor of 1, the number of heads of the decoder of",
    ):
        preflight.require_software(plan, settings)


def test_more_than_a_gpu_is_asked_for_whole():
    assert refusal([{"CPU": 8.0, "GPU": 8.0}], gpus=8, learner_gpus=1.5).startswith("learner_gpus=1.5 should be ")


@pytest.mark.parametrize(
    ("nodes", "parts", "expected"),
    [
        ([ONE_CPU] * 4, [{"CPU": 0.5}] * 2, 4),
        ([{"CPU": 3.0}] * 2, [{"CPU": 2.0}], 2),
        ([{"CPU": 1.5}] * 2, [{"CPU": 0.5}, {"CPU": 0.5}], 3),
        ([{"CPU": 8.0, "GPU": 2.0}], [{"CPU": 0.5, "GPU": 0.6}], 2),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0}], [{"CPU": 1.0}], 7),
        ([{"CPU": 0.3}], [{"CPU": 0.1}], 3),
    ],
)
def test_trials_at_once_are_counted_by_nodes(nodes, parts, expected):
    assert how_many(parts, nodes_of(nodes), at_most=7) == expected


def test_at_once_is_what_the_largest_kind_has_room_for():
    assert preflight.concurrency(PLAN, RunConfig(), nodes_of([ONE_CPU] * 9)) == len(PLAN.trials)
    assert preflight.concurrency(PLAN, RunConfig(train_cpus=2), nodes_of([{"CPU": 3.0}])) == 1
    assert preflight.concurrency(PLAN, RunConfig(max_concurrent=5), nodes_of([])) == 5


def by_trying_all(parts, nodes):
    """Return whether the parts fit on the nodes, by trying every placement."""
    for places in itertools.product(range(len(nodes)), repeat=len(parts)):
        left: list[Node | None] = [Node.of(node) for node in nodes]
        for part, place in zip(parts, places, strict=True):
            node = left[place]
            left[place] = node and node.without(part)
        if None not in left:
            return True
    return False


def test_fitting_together_is_exact():
    chance = random.Random(0)
    for _ in range(300):
        nodes = [
            {"CPU": chance.choice([1, 2, 3]), "GPU": chance.choice([0, 1, 2])} for _ in range(chance.choice([1, 2, 3]))
        ]
        first, other = ({"CPU": chance.choice([0.5, 1, 2]), "GPU": chance.choice([0, 0.3, 0.5, 1])} for _ in range(2))
        parts = [*[first] * chance.choice([1, 2]), *[other] * chance.choice([1, 2, 3])]
        assert fit_together(parts, nodes_of(nodes)) == by_trying_all(parts, nodes), (parts, nodes)


# Nodes that an autoscaler may start

CONFIG = {
    "max_workers": 6,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "small": {"resources": {"CPU": 4}, "max_workers": 8},
        "large": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
    },
}


def test_each_kind_of_node_may_be_started_up_to_its_limit_and_that_of_all():
    assert autoscaling.types_in(CONFIG) == [({"CPU": 4}, 6), ({"CPU": 8, "GPU": 1}, 2)]
    assert autoscaling.types_in({}) == []


def test_nodes_that_may_be_started_count_beside_those_that_are_there(monkeypatch):
    """Let some existing nodes be of a kind that may be started. They count once."""
    there = [{"CPU": 0.0}, {"CPU": 4.0, "memory": 1e9}, {"CPU": 64.0}]
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": one} for one in there] + [{"Alive": False}])
    monkeypatch.setattr("ray.get_runtime_context", lambda: type("Context", (), {"gcs_address": "here"}))
    monkeypatch.setattr(autoscaling, "_of_monitor", lambda address: CONFIG)
    assert preflight.capacity() == {Node(0.0): 1, Node(64.0): 1, Node(4.0, memory=1): 6, Node(8.0, (1.0,)): 2}
    assert placement.total(preflight.capacity()) == {"CPU": 64 + 24 + 16, "GPU": 2, "memory": math.inf}


def test_a_configuration_that_can_not_be_read_is_said_and_leaves_what_is_there(monkeypatch, caplog):
    def unreadable(address):
        raise PermissionError("it is not yours")

    monkeypatch.setattr(autoscaling, "_of_monitor", unreadable)
    assert autoscaling.node_types("here") == []
    assert "cannot read how far the cluster may grow (PermissionError: it is not yours)" in caplog.text
