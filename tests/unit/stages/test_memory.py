"""The arithmetic of memory: its growth with each size. `python -m benchmarks memory` compares it with measurements."""

import pytest

from rayexp.config import RunConfig
from rayexp.models.config import Decoder
from rayexp.stages.memory import PROCESS, VLLM_PROCESS, Shape, processes
from rayexp.studies.presets import DECODERS
from rayexp.sweep import placement, preflight
from rayexp.sweep.placement import nodes_of
from rayexp.sweep.plan import Plan
from rayexp.tasks.strings import StringTask
from tests.fixtures.factories import tiny_chain

SEVEN_B = Decoder(layers=32, width=4096, ff_width=11008, heads=32, kv_heads=32, context_tokens=4096)
SHAPE = Shape(SEVEN_B.parameters(32_000), SEVEN_B.layers, SEVEN_B.width, 32_000)
CHAIN = tiny_chain(StringTask(axis="composition"))


def test_the_shape_of_a_decoder_follows_from_its_parameters():
    """Derive the feed-forward width from the parameters, because no setting of a pretrained decoder states it."""
    assert SHAPE.ff_width == pytest.approx(SEVEN_B.ff_width, rel=0.001)


def test_training_holds_sixteen_bytes_a_parameter_that_ranks_divide_among_them():
    alone, spread = (SHAPE.training(0, ranks, spread, False) for ranks, spread in ((1, False), (8, True)))
    held = [memory.weights + memory.gradients + memory.optimiser for memory in (alone, spread)]
    assert held[0] == 16 * SHAPE.parameters
    whole = 2 * 4 * (2 * SHAPE.block + 2 * SHAPE.vocabulary * SHAPE.width)  # weights and gradients of the active blocks
    assert held[1] == pytest.approx(held[0] / 8 + whole)
    assert SHAPE.training(0, 2, False, False).gradients == 2 * alone.gradients


def test_activations_grow_with_tokens_and_checkpointing_keeps_one_layer():
    once, twice = (SHAPE.activations(tokens, False, False) for tokens in (100, 200))
    assert twice == 2 * once
    kept = SHAPE.activations(100, False, True)
    assert once / SHAPE.layers < kept < once / 8


def test_a_micro_batch_bounds_what_a_gradient_keeps():
    def activations(**settings):
        return {
            stage.kind: next(iter(processes(stage, RunConfig(**settings)).values())).activations for stage in CHAIN[:3]
        }

    whole, parts = activations(), activations(micro_batch_tokens=64)
    assert all(parts[kind] < 0.5 * whole[kind] for kind in whole)


def test_each_process_of_a_stage_is_named():
    by_kind = {stage.kind: processes(stage, RunConfig()) for stage in CHAIN}
    assert {kind: [*names] for kind, names in by_kind.items()} == {
        "pretrain": ["training rank"],
        "sft": ["training rank"],
        "grpo": ["learner", "rollout worker"],
        "evaluate": ["process"],
    }
    grpo, parameters = CHAIN.grpo, CHAIN.pretrain.parameters
    assert by_kind["grpo"]["learner"].weights == 8 * parameters, "the policy and its reference"
    free = processes(grpo.model_copy(update={"kl_beta": 0.0}), RunConfig())
    assert free["learner"].weights == 4 * parameters
    with_vllm = processes(grpo.model_copy(update={"sampler": "vllm"}), RunConfig(kv_cache_gib=2))["rollout worker"]
    assert (with_vllm.cache, with_vllm.process) == (2 * 2**30, VLLM_PROCESS)
    assert by_kind["evaluate"]["process"].total == PROCESS + 4 * parameters


def test_ranks_are_spread_where_that_is_asked_for():
    one, two = (
        processes(CHAIN.pretrain, RunConfig(train_workers=2, sharding=sharding))["training rank"]
        for sharding in ("none", "full")
    )
    assert two.optimiser == one.optimiser / 2


def test_ranks_of_a_learner_divide_what_it_holds_and_what_it_learns_from():
    grpo = CHAIN.grpo.model_copy(update={"prompts_per_step": 64})
    one, four = (processes(grpo, RunConfig(learner_workers=n))["learner"] for n in (1, 4))
    assert four.optimiser == one.optimiser / 4
    shape = Shape.of(CHAIN.pretrain)
    assert four.weights == one.weights / 4 + 4 * shape.collected, "policy and reference, and what is whole for a moment"
    assert four.activations < one.activations / 3


def refused(root, run_config, nodes) -> str:
    """Return the refusal of a training stage; '' if it is accepted."""
    try:
        preflight.require_resources(Plan.of("test", [root], ()), run_config, nodes)
    except preflight.PreflightError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "ranks", "fits"), [("H100", 1, False), ("H100", 8, True), ("unknown", 1, True)])
def test_a_decoder_that_outgrows_a_gpu_is_refused_with_the_memory_that_it_needs(kind, ranks, fits):
    root = CHAIN.pretrain.model_copy(update={"decoder": SEVEN_B, "batch_samples": 8})
    nodes = nodes_of([{"CPU": 8.0, "GPU": 8.0, f"accelerator_type:{kind}": 1.0, "memory": 1e12}])
    run_config = RunConfig(train_workers=ranks).resolve(8)
    refusal = refused(root, run_config, nodes)
    assert bool(refusal) != fits
    if refusal:
        title, header, *_, node = refusal.splitlines()
        assert title.endswith("no node has room for a training rank")
        assert header.split() == ["CPU", "GPU", "memory", "of", "a", "GPU"]
        assert node.split()[-2:] == ["80.0", "GB"]


def test_processes_that_share_a_gpu_share_its_memory():
    node = nodes_of([{"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}])
    assert placement.fits({"CPU": 1.0, "GPU": 0.5, placement.ON_GPU: 12e9}, node)
    assert not placement.fits({"CPU": 1.0, "GPU": 0.5, placement.ON_GPU: 13e9}, node)
    assert placement.fits({"CPU": 1.0, "GPU": 1.0, placement.ON_GPU: 13e9}, node)


def test_a_learner_that_fits_no_device_fits_several_ranks():
    decoder = {"decoder": SEVEN_B, "batch_samples": 8}
    sft = CHAIN.sft.model_copy(update={"init": CHAIN.pretrain.model_copy(update=decoder)})
    grpo = CHAIN.grpo.model_copy(update={"init": sft})
    nodes = nodes_of([{"CPU": 8.0, "memory": 64e9}] * 8)
    plan = Plan.of("test", [*grpo.lineage], {stage.id for stage in grpo.lineage[:-1]})
    with pytest.raises(preflight.PreflightError, match="no node has room for a learner"):
        preflight.require_resources(plan, RunConfig().resolve(0), nodes)
    large = RunConfig(learner_workers=2, learner_cpus=9, rollout_cpus=9).resolve(0)
    with pytest.raises(preflight.PreflightError, match="no node has room for a rank of a learner or a rollout worker"):
        preflight.require_resources(plan, large, nodes)
    preflight.require_resources(plan, RunConfig(learner_workers=6).resolve(0), nodes)


@pytest.mark.parametrize(("sharding", "fits"), [("none", False), ("auto", True), ("full", True)])
def test_a_decoder_that_only_several_ranks_can_hold_is_refused_to_ranks_that_each_hold_it(sharding, fits):
    root = CHAIN.pretrain.model_copy(update={"decoder": SEVEN_B, "batch_samples": 8})
    run_config = RunConfig(train_workers=8, sharding=sharding).resolve(0)
    nodes = nodes_of([{"CPU": 8.0, "memory": 64e9}] * 8)
    refusal = refused(root, run_config, nodes)
    assert bool(refusal) != fits
    assert fits or "no node has room for a training rank" in refusal
    assert fits or refusal.endswith("\nit fits with --sharding auto")


@pytest.mark.parametrize(
    ("gigabytes", "advice"),
    [(12, "--micro-batch-tokens 65536"), (5, "--micro-batch-tokens 16384"), (0.7, None)],
)
def test_a_refusal_says_the_least_change_that_fits(gigabytes, advice):
    root = CHAIN.pretrain.model_copy(update={"decoder": DECODERS["small"], "batch_samples": 10_000})
    plan, nodes = Plan.of("test", [root], ()), nodes_of([{"CPU": 8.0, "memory": gigabytes * 1e9}])
    with pytest.raises(preflight.PreflightError) as refused:
        preflight.require_resources(plan, RunConfig().resolve(0), nodes)
    last = str(refused.value).splitlines()[-1]
    assert (last == f"it fits with {advice}") if advice else "fits" not in last
