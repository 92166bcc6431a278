"""vLLM against the reference sampler, as the GRPO stage uses it: through actors, over one worker and over two."""

import copy

import numpy as np
import pytest
import ray

from rayexp.config import RunConfig
from rayexp.distributed.rollout_manager import ParityError, RolloutManager
from rayexp.distributed.weight_sync import chunks
from rayexp.models import factory, io
from rayexp.models.config import Decoder
from rayexp.rl.learner import GRPOLearner, MismatchError
from rayexp.rl.prompts import Prompts, group_rewards
from rayexp.rl.rollouts import rollout_batches
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.stages import PromptShare
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import TOY, grpo, pretrain, sft

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def case():
    """Return a decoder with sharp preferences, its weights by reference, and prompts of several lengths."""
    base = pretrain()
    model = factory.build(base.decoder, VOCABULARY, seed=3)
    numbers = np.arange(12)
    prompts = [
        row for role in ("id", "probe") for r in base.task.of_role("grpo", 0, role, numbers) for row in r.prompts
    ]
    return grpo(sft(base)), model, prompts


@pytest.fixture(scope="module")
def managers(cluster, case):
    """Return managers of one worker and of two workers, with the same weights."""
    spec, model, _ = case
    weights = ray.put({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    two = RolloutManager(spec, RunConfig(store="unused", rollout_workers=2))
    two.sync([weights], version=7)
    one = copy.copy(two)
    one.workers = two.workers[:1]  # an engine takes seconds to start: the second manager has one of the first's two
    yield one, two
    two.stop()


def drawn(rollout_manager, prompts, seeds, group=4):
    return rollout_manager.generate(prompts, seeds, group, [6] * len(prompts))


def test_greedy_agrees_with_the_reference(managers, case):
    _, model, prompts = case
    expected = TorchSampler(model).greedy(prompts, [6] * len(prompts))
    found = managers[0].greedy(prompts, [6] * len(prompts))
    assert found.rows == expected.rows
    assert np.abs(found.logprobs_NC - expected.logprobs_NC).max() < 1e-4


def test_logprobs_are_those_of_the_learner(managers, case):
    _, model, prompts = case
    completions = drawn(managers[0], prompts, [1024 * i for i in range(len(prompts))])
    assert completions.weight_version == 7
    sequences = [prompts[i // 4] + row for i, row in enumerate(completions.rows)]
    for scores, row, logprobs in zip(
        TorchSampler(model).score(sequences), completions.rows, completions.logprobs_NC, strict=True
    ):
        assert np.abs(scores[-len(row) :] - logprobs[: len(row)]).max() < 1e-4


def test_equal_seeds_give_equal_completions_over_one_worker_and_two(managers, case):
    _, _, prompts = case
    seeds = [1024 * i for i in range(len(prompts))]
    one, two, again = (drawn(rollout_manager, prompts, seeds) for rollout_manager in (*managers, managers[0]))
    assert one.rows == two.rows == again.rows
    assert np.array_equal(one.logprobs_NC, two.logprobs_NC), "the batch that a completion was drawn in shows"
    backwards = drawn(managers[1], prompts[::-1], seeds[::-1])
    assert [backwards.rows[i : i + 4] for i in range(0, len(backwards.rows), 4)][::-1] == [
        one.rows[i : i + 4] for i in range(0, len(one.rows), 4)
    ]
    assert drawn(managers[0], prompts, [seed + 512 for seed in seeds]).rows != one.rows


def test_a_sync_that_did_not_arrive_is_noticed(managers, case):
    spec, model, prompts = case
    expected = TorchSampler(model).score(prompts[:2])
    assert managers[1].require_parity(prompts[:2], expected) < 1e-4
    other = TorchSampler(factory.build(spec.root.decoder, VOCABULARY, seed=4)).score(prompts[:2])
    with pytest.raises(ParityError, match="nats on fixed tokens"):
        managers[1].require_parity(prompts[:2], other)


def test_a_worker_that_dies_is_replaced_with_the_same_answer(managers, case):
    _, _, prompts = case
    seeds = [1024 * i for i in range(len(prompts))]
    before = drawn(managers[1], prompts, seeds)
    ray.kill(managers[1].workers[0], no_restart=False)
    assert drawn(managers[1], prompts, seeds).rows == before.rows


def test_bf16_passes_the_default_limit_on_mismatch_and_not_that_of_fp32(cluster):
    base = pretrain(decoder=DECODERS["tiny"])
    spec = grpo(sft(base), optimiser=TOY.grpo.model_copy(update={"precision": "bf16"}))
    model, run_config = factory.build(base.decoder, VOCABULARY, seed=3), RunConfig(store="unused")
    rollout_manager, learner, stage_prompts = RolloutManager(spec, run_config), GRPOLearner(spec, model), Prompts(spec)
    try:
        rollout_manager.sync([ray.put(learner.weights())], version=0)
        batch = stage_prompts.at(0)
        completions = rollout_manager.generate(*batch.request(spec.group_size))
        expected = TorchSampler(model, precision="bf16").score(stage_prompts.probe)
        assert rollout_manager.require_parity(stage_prompts.probe, expected) > 1e-3
    finally:
        rollout_manager.stop()
    rewards_PG = group_rewards(spec.root.task, spec.rewards, batch, completions)
    batches = rollout_batches(batch, completions, rewards_PG)
    with pytest.raises(MismatchError):
        learner.update(batches, run_config.mismatch_limit("fp32"))
    assert learner.update(batches, run_config.mismatch_limit("bf16"))["max_logprob_mismatch"] > 0.02


@pytest.mark.parametrize("positions", ["none", "randomised"])
def test_decoders_with_other_positions_are_served_as_they_are_scored(cluster, case, positions):
    """Check it after a second sync, with other weights."""
    _, _, prompts = case
    base = pretrain(decoder=TOY.decoder.model_copy(update={"positions": positions}))
    model = factory.build(base.decoder, VOCABULARY, seed=3)
    rollout_manager = RolloutManager(grpo(sft(base)), RunConfig(store="unused"))
    try:
        for version, seed in enumerate((5, 3)):
            weights = factory.build(base.decoder, VOCABULARY, seed).state_dict().items()
            rollout_manager.sync([ray.put({name: tensor.numpy() for name, tensor in weights})], version=version)
        assert rollout_manager.require_parity(prompts, TorchSampler(model).score(prompts)) < 1e-4
        found, expected = (
            sampler.greedy(prompts, [6] * len(prompts)) for sampler in (rollout_manager, TorchSampler(model))
        )
        assert found.rows == expected.rows
    finally:
        rollout_manager.stop()


def test_hints_and_a_curriculum_are_drawn_for_as_the_learner_scores_them(managers, case):
    spec, model, _ = case
    stage = grpo(spec.init, prompt_role="ood", curriculum=(PromptShare(kind="id"),), hint_tokens=2)
    prompts = Prompts(stage)
    for step in range(stage.steps):
        batch = prompts.at(step)
        completions = managers[1].generate(*batch.request(stage.group_size))
        rewards_PG = group_rewards(stage.root.task, stage.rewards, batch, completions)
        batches = rollout_batches(batch, completions, rewards_PG)
        learner = GRPOLearner(stage, copy.deepcopy(model))
        assert learner.update(batches, 1e-4)["max_logprob_mismatch"] < 1e-4


def test_completions_are_drawn_at_the_temperature_that_the_learner_scores_them_at(managers, case, monkeypatch):
    spec, model, _ = case
    stage = spec.model_copy(update={"temperature": 0.5})
    monkeypatch.setattr(managers[1], "_stage", stage)
    batch = Prompts(stage).at(0)
    completions = managers[1].generate(*batch.request(stage.group_size))
    rewards_PG = group_rewards(stage.root.task, stage.rewards, batch, completions)
    learner = GRPOLearner(stage, copy.deepcopy(model))
    assert learner.update(rollout_batches(batch, completions, rewards_PG), 1e-4)["max_logprob_mismatch"] < 1e-4


def test_a_model_folder_loads_in_stock_vllm(cluster, case, tmp_path):
    _, model, prompts = case
    io.save(model, VOCABULARY, tmp_path / "model")
    expected = TorchSampler(model).greedy(prompts[:3], [6] * 3).rows

    @ray.remote(num_cpus=0.5, max_calls=1, runtime_env={"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}})
    def stock():
        from vllm import LLM, SamplingParams

        llm = LLM(
            model=str(tmp_path / "model"),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=2**27,
        )
        params = SamplingParams(temperature=0.0, max_tokens=6, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts[:3]], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    assert ray.get(stock.remote(), timeout=120) == expected


def test_an_engine_of_two_ranks_scores_and_draws_as_the_decoder_itself_does(cluster, case):
    """Give each of two ranks half of every weight, in parts."""
    spec, _, prompts = case
    wide = Decoder(layers=2, width=64, ff_width=128, heads=2, kv_heads=2, context_tokens=256)
    stage = spec.model_copy(update={"init": sft(pretrain(decoder=wide))})
    model = factory.build(wide, VOCABULARY, seed=3)
    manager = RolloutManager(stage, RunConfig(store="unused", tensor_parallel=2))
    try:
        arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        parts = chunks({name: array.nbytes for name, array in arrays.items()}, limit=1)
        manager.sync([ray.put({name: arrays[name] for name in names}) for names in parts], version=1)
        reference = TorchSampler(model)
        assert manager.require_parity(prompts, reference.score(prompts)) < 1e-4
        ours, theirs = (sampler.greedy(prompts, [6] * len(prompts)) for sampler in (manager, reference))
        assert ours.rows == theirs.rows
    finally:
        manager.stop()
