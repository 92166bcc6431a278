"""Training steps to the digit: golden losses, bitwise continuation, and what a bad gradient may not do."""

import io
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaForCausalLM

from rayexp.distributed.rollout_manager import RolloutWorker
from rayexp.errors import NotFiniteError
from rayexp.models import decoder as decoders
from rayexp.rl.learner import MismatchError, PolicyLearner, rollout_batches
from rayexp.rl.objectives import GRPOSettings, Rollouts, grpo_loss, next_token_loss
from rayexp.rl.scoring import ROW_MULTIPLE, UniquePrefixes, completion_logprobs, group_logprobs
from rayexp.sampling.base import Completions, prompt_seed
from rayexp.sampling.cuda_graph import StaticStep
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.spec import AdamW, RunConfig
from rayexp.studies.presets import DECODERS
from rayexp.tasks.strings import Corpus, World, vocabulary
from rayexp.training.trainer import Trainer, learning_rate
from tests.fixtures.factories import MICRO, OPTIMISER, tiny_chain

STEPS = 20
CORPUS = Corpus(World("composition"), seed=0)

#: Semantics lock: a change that should not alter results leaves these alone.
# fmt: off
GOLDEN_LOSSES = [
    4.589215, 3.880874, 3.355594, 3.275117, 3.077286,
    2.894290, 2.843309, 2.747949, 2.711740, 2.654918,
    2.634811, 2.605818, 2.592476, 2.590445, 2.538178,
    2.541566, 2.511393, 2.478355, 2.481248, 2.462718,
]
# fmt: on
GOLDEN_UPDATES = [(0.0, 0.0, 1.351103), (0.000993, 0.047686, 1.270126), (0.008700, 0.420324, 1.135734)]


def losses_of_step(trainer, step, record):
    """What pretraining does in one step of 32 samples: the mean over tokens, one rectangle at a time."""
    token_batches = CORPUS.mixture("pretrain", 0.1, step * 32, 32)
    counted = sum(r.tokens_NT[:, 1:].size for r in token_batches)

    def loss(token_batch):
        tokens_NT = torch.from_numpy(token_batch.tokens_NT.astype(np.int64))
        logits_NTV = trainer.model(input_ids=tokens_NT[:, :-1], use_cache=False).logits
        value = next_token_loss(logits_NTV, tokens_NT).sum() / counted
        record.append(value.item())
        return value

    return [lambda r=r: loss(r) for r in token_batches]


def train(trainer, stop):
    """Loss of every step up to ``stop``."""
    losses = []
    while trainer.completed_steps < stop:
        parts: list[float] = []
        trainer.step(losses_of_step(trainer, trainer.completed_steps, parts))
        losses.append(sum(parts))
    return losses


def micro_trainer(seed=0, optimiser=OPTIMISER):
    return Trainer(decoders.build(MICRO, seed), optimiser, STEPS)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Supervised


def test_golden_losses_of_the_tiny_decoder():
    trainer = Trainer(decoders.build(DECODERS["tiny"], seed=0), OPTIMISER, STEPS)
    assert train(trainer, STEPS) == pytest.approx(GOLDEN_LOSSES, abs=1e-5)


def test_a_run_that_was_stopped_continues_bitwise():
    """Through a file that holds tensors only, and into a trainer that started from other weights."""
    straight, stopped, continued = micro_trainer(), micro_trainer(), micro_trainer(seed=9)
    losses = train(straight, 8)
    first = train(stopped, 3)
    file = io.BytesIO()
    torch.save(stopped.state(), file)
    file.seek(0)
    expected_draw = torch.rand(3)
    continued.restore(torch.load(file, weights_only=True))
    assert torch.equal(torch.rand(3), expected_draw)
    assert continued.completed_steps == 3
    assert first + train(continued, 8) == losses
    assert same(weights(continued.module), weights(straight.module))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_is_named_and_changes_nothing(bad, where):
    disturbed, quiet = micro_trainer(), micro_trainer()
    train(disturbed, 2)
    before = weights(disturbed.module)
    good = losses_of_step(disturbed, 2, [])
    name, parameter = next(iter(disturbed.module.named_parameters()))
    if where == "loss":
        expected, last = f"the loss is {bad}", lambda: sum(p.sum() for p in disturbed.module.parameters()) * bad
    else:
        expected, last = f"the gradient of {name} is not finite", lambda: finite_with_gradient(parameter, bad)
    with pytest.raises(NotFiniteError, match=re.escape(expected)):
        disturbed.step([*good, last])
    assert same(weights(disturbed.module), before)
    assert disturbed.completed_steps == 2
    train(disturbed, 4)
    train(quiet, 4)
    assert same(weights(disturbed.module), weights(quiet.module))


def finite_with_gradient(parameter, gradient):
    """A loss of 0 whose gradient is whatever one likes."""
    value = (parameter * 0).sum()
    value.register_hook(lambda _: torch.tensor(gradient))
    return value


def test_a_step_adds_its_losses_up_and_returns_the_norm_before_clipping():
    one, other = micro_trainer(), micro_trainer()
    parts = losses_of_step(one, 0, [])
    assert len(parts) > 1
    norm = one.step(parts)
    torch.testing.assert_close(other.step([lambda: sum(part() for part in losses_of_step(other, 0, []))]), norm)
    for a, b in zip(weights(one.module).values(), weights(other.module).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    clipped = Trainer(decoders.build(MICRO, 0), OPTIMISER.model_copy(update={"clip_norm": 1e-3}), STEPS)
    torch.testing.assert_close(clipped.step(losses_of_step(clipped, 0, [])), norm)
    assert norm > 1e-3


def test_weight_decay_shrinks_matrices_only():
    trainer = micro_trainer(optimiser=AdamW(learning_rate=0.1, weight_decay=0.5, schedule="constant"))
    before = weights(trainer.module)
    trainer.step([lambda: sum(p.sum() for p in trainer.module.parameters()) * 0.0])
    for name, now in weights(trainer.module).items():
        torch.testing.assert_close(now, before[name] * (0.95 if now.ndim > 1 else 1.0))


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    cosine = AdamW(learning_rate=0.4, warmup_steps=4)
    rates = [learning_rate(cosine, step, 104) for step in range(106)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[54] == pytest.approx(0.22)
    assert rates[104] == rates[105] == pytest.approx(0.04)
    assert all(a > b for a, b in itertools.pairwise(rates[4:105]))


def test_constant_learning_rate():
    constant = AdamW(learning_rate=0.4, warmup_steps=2, schedule="constant")
    assert [learning_rate(constant, step, 5) for step in range(5)] == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4])
    assert learning_rate(AdamW(learning_rate=0.4), 0, 10) == 0.4


def test_the_trainer_follows_the_schedule():
    """With its moments at rest, Adam's first step is as long as the rate."""
    trainer = micro_trainer(optimiser=AdamW(learning_rate=0.4, warmup_steps=4))
    before = weights(trainer.module)["model.norm.weight"]
    trainer.step([lambda: sum(p.sum() for p in trainer.module.parameters())])
    torch.testing.assert_close(weights(trainer.module)["model.norm.weight"], before - 0.1)


# Decoders


@pytest.mark.parametrize("name", ["tiny", "micro"])
def test_a_saved_decoder_comes_back_bitwise(tmp_path, name):
    shape = DECODERS["tiny"] if name == "tiny" else MICRO
    model = decoders.build(shape, seed=3)
    decoders.save(model, tmp_path)
    loaded = decoders.load(tmp_path)
    assert same(weights(loaded), weights(model))
    assert loaded.training
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert loaded.config.max_position_embeddings == shape.context_tokens


def test_equal_seeds_build_equal_decoders_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    one, twin, other = (weights(decoders.build(MICRO, seed)) for seed in (0, 0, 1))
    assert same(one, twin)
    assert not same(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_number_of_parameters_is_the_predicted_one(name):
    model = decoders.build(DECODERS[name], seed=0)
    assert sum(p.numel() for p in model.parameters()) == DECODERS[name].parameters(vocabulary.SIZE)


# GRPO


def grpo_spec(**changes):
    spec = tiny_chain(World("composition")).grpo
    return spec.model_copy(update={"optimiser": OPTIMISER.model_copy(update={"schedule": "constant"}), **changes})


def rollouts(model, group=4):
    """Numbered prompts of two lengths, completions, and rewards that do not depend on them."""
    prompts = [row for role in ("id", "ood") for r in CORPUS.tasks("grpo", role, np.arange(6)) for row in r.prompts]
    seeds = [prompt_seed("test", i) for i in range(len(prompts))]
    drawn = TorchSampler(model).generate(prompts, seeds, group, [5] * len(prompts))
    rewards_PG = (np.arange(len(prompts) * group).reshape(-1, group) % 3 == 0).astype(np.float32)
    return list(range(len(prompts))), prompts, drawn, rewards_PG


def test_golden_grpo_updates(model):
    """Three updates on the same rollouts: loss, KL to the reference and gradient norm of each."""
    learner = PolicyLearner(grpo_spec(), model)
    reference = weights(learner.reference)
    batches = rollout_batches(*rollouts(model))
    found = [learner.update(batches, max_logprob_mismatch=math.inf) for _ in range(3)]
    values = [(step["loss"], step["kl"], step["grad_norm"]) for step in found]
    for value, golden in zip(values, GOLDEN_UPDATES, strict=True):
        assert value == pytest.approx(golden, abs=1e-5)
    assert found[0]["max_logprob_mismatch"] < 1e-5
    assert found[0]["sampler_kl"] == pytest.approx(0, abs=1e-5)
    assert found[0]["effective_sample_share"] == pytest.approx(1, abs=1e-5)
    assert found[2]["effective_sample_share"] < 0.999
    assert same(weights(learner.reference), reference)
    assert not same(weights(learner.model), reference)


@pytest.mark.parametrize("spare_rows", [0, 5])
def test_a_step_on_fixed_memory_is_a_step_of_a_growing_cache(model, spare_rows):
    """What a GPU captures, twice over the same memory: the second prompt finds nothing of the first."""
    group, limit, length = 3, 4, 7
    fixed = StaticStep(model, 4 * group + spare_rows, length, limit)
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        prompts_PT = torch.randint(vocabulary.SIZE, (4, length), generator=random)
        tokens_NC = torch.randint(vocabulary.SIZE, (4 * group, limit), generator=random)
        cache = DynamicCache()
        with torch.no_grad():
            model(input_ids=prompts_PT, past_key_values=cache, use_cache=True)
            step = fixed.begin(cache, group)
            whole_NT = torch.cat([prompts_PT.repeat_interleave(group, dim=0), tokens_NC], dim=1)
            expected_NTV = model(input_ids=whole_NT, use_cache=False).logits
            for position in range(limit):
                torch.testing.assert_close(step(tokens_NC[:, position]), expected_NTV[:, length + position])


def test_a_step_in_bf16_sees_weights_that_were_written_in_place(model):
    """Inside of one autocast context, which keeps copies of weights: a graph would go on reading those."""
    fixed, cache, token_N = StaticStep(model, 4, 7, 4), DynamicCache(), torch.arange(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros((4, 7), dtype=torch.int64), past_key_values=cache, use_cache=True)
        before_NV = fixed.begin(cache, 1)(token_N)
        model.lm_head.weight.mul_(2)
        torch.testing.assert_close(fixed.begin(cache, 1)(token_N), 2 * before_NV)


class NothingFromTheHost(TorchDispatchMode):
    """Refuses tensors that are made of Python's numbers, which a CUDA graph can't copy to its device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket is not torch.ops.aten.lift_fresh, "a tensor of the host's numbers"
        return func(*args, **(kwargs or {}))


def test_a_step_neither_waits_for_a_value_nor_takes_one_from_the_host():
    """What capturing it needs, on tensors without values: whoever asks for one is refused."""
    with FakeTensorMode(), torch.no_grad():
        model = LlamaForCausalLM(decoders.config(MICRO))
        cache, fixed, token_N = DynamicCache(), StaticStep(model, 8, 7, 4), torch.zeros(8, dtype=torch.int64)
        model(input_ids=torch.zeros((4, 7), dtype=torch.int64), past_key_values=cache, use_cache=True)
        step = fixed.begin(cache, 2)
        with NothingFromTheHost():
            assert step(token_N).shape == (8, vocabulary.SIZE)
        with pytest.raises(AssertionError, match="numbers"), NothingFromTheHost():
            torch.tensor([1])
        with pytest.raises(DataDependentOutputException):
            step(token_N).max().item()


def test_samples_of_another_policy_are_refused(model):
    learner = PolicyLearner(grpo_spec(), model)
    numbers, prompts, drawn, rewards_PG = rollouts(model)
    before = weights(model)
    drawn.logprobs_NC[5, 0] += 0.05
    with pytest.raises(MismatchError, match=r"differ by 0\.05 nats .* max_logprob_mismatch = 0\.02"):
        learner.update(rollout_batches(numbers, prompts, drawn, rewards_PG), max_logprob_mismatch=0.02)
    assert same(weights(model), before)
    assert learner.trainer.completed_steps == 0


def test_several_updates_start_from_the_policy_that_sampled(model):
    """Statistics are those of the first one, and the ratio of the second refers to the policy before it."""
    once, twice = (PolicyLearner(grpo_spec(updates=n), decoders.build(MICRO, 1)) for n in (1, 2))
    batches = rollout_batches(*rollouts(model))
    one, two = (learner.update(batches, 0.02) for learner in (once, twice))
    assert one == pytest.approx(two | {"clipped": 0.0}, abs=1e-6)
    assert (once.trainer.completed_steps, twice.trainer.completed_steps) == (1, 2)
    assert not same(weights(once.model), weights(twice.model))
    once.update(batches, math.inf)  # takes its own policy for the one that sampled
    assert not same(weights(once.model), weights(twice.model))


def test_what_the_clip_cuts_is_counted_over_all_updates(model):
    """The first of two starts at a ratio of 1, where nothing is cut: the mean is half of what the second one cuts."""
    spec = grpo_spec(kl_beta=0.0, clip_ratio=0.01)
    batches = rollout_batches(*rollouts(model))
    once, twice = (PolicyLearner(spec.model_copy(update={"updates": n}), decoders.build(MICRO, 1)) for n in (1, 2))
    settings = GRPOSettings(0.0, "exact", "loss", spec.advantage, spec.loss_reduction, spec.clip_ratio)

    def logprobs(batch):
        with torch.no_grad():
            return group_logprobs(once.model, UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC))

    def cut_by_the_next_update(batch, before_NCV):
        tokens_NC = torch.tensor(batch.tokens_NC)
        old_NC = before_NCV.gather(-1, tokens_NC[..., None]).squeeze(-1)
        drawn = Rollouts(tokens_NC, torch.tensor(batch.mask_NC), torch.tensor(batch.rewards_PG), None, old_NC)
        return grpo_loss(logprobs(batch), drawn, settings)[1]["clipped"].item()

    before = [logprobs(batch) for batch in batches]
    assert once.update(batches, 0.02)["clipped"] == 0
    completions = sum(len(batch.tokens_NC) for batch in batches)
    second = sum(map(cut_by_the_next_update, batches, before)) / completions
    assert second > 0.05
    assert twice.update(batches, 0.02)["clipped"] == pytest.approx(second / 2, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize("decoder", ["toy", "tiny", "small"])
def test_equal_rewards_leave_the_weights_alone(decoder, kl_beta, precision):
    """To the last bit, also at the reference: the KL's gradient there is zero, and not what rounding makes of it."""
    model = decoders.build(DECODERS[decoder], seed=1)
    learner = PolicyLearner(grpo_spec(kl_beta=kl_beta, optimiser=AdamW(learning_rate=1e-2, precision=precision)), model)
    assert (learner.reference is None) == (kl_beta == 0)
    before = weights(model)
    numbers, prompts, drawn, rewards_PG = rollouts(model)
    batches = rollout_batches(numbers, prompts, drawn, np.ones_like(rewards_PG))
    statistics = learner.update(batches, max_logprob_mismatch=0.1)
    assert statistics["grad_norm"] == 0
    assert same(weights(model), before)


def test_stale_samples_are_weighed_by_the_ratio_to_the_policy_that_drew_them(model):
    """Gradient of the first update, against the loss by hand: the mean over tokens of -min(r A, clip(r) A)."""
    spec = grpo_spec(staleness=1, kl_beta=0.0, advantage="mean_only")
    drawn = rollouts(decoders.build(MICRO, seed=2))
    learner = PolicyLearner(spec, model)
    batches = rollout_batches(*drawn)
    total = torch.zeros(())
    for batch in batches:
        tokens_NC, mask_NC = torch.tensor(batch.tokens_NC), torch.tensor(batch.mask_NC)
        rewards_PG = torch.tensor(batch.rewards_PG)
        advantage_N1 = (rewards_PG - rewards_PG.mean(dim=1, keepdim=True)).reshape(-1, 1)
        logprobs_NCV = group_logprobs(model, UniquePrefixes.of(batch.prompts_PT, batch.tokens_NC))
        chosen_NC = logprobs_NCV.gather(-1, tokens_NC[..., None]).squeeze(-1)
        ratio_NC = (chosen_NC - torch.tensor(batch.sampler_logprobs_NC)).exp()
        gain_NC = torch.minimum(ratio_NC * advantage_N1, ratio_NC.clamp(0.8, 1.2) * advantage_N1) * mask_NC
        total = total - (gain_NC.sum(dim=1) / mask_NC.sum(dim=1)).sum()
    (total / drawn[3].size).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    model.zero_grad()
    found = learner.update(batches, max_logprob_mismatch=1e-9)
    assert found["grad_norm"] == pytest.approx(expected.item(), rel=1e-4)
    assert found["max_logprob_mismatch"] > 0.1
    assert found["clipped"] > 0
    with pytest.raises(MismatchError):
        PolicyLearner(grpo_spec(kl_beta=0.0), model).update(batches, max_logprob_mismatch=1e-9)


def test_weights_that_were_handed_out_do_not_follow_the_learner(model):
    learner = PolicyLearner(grpo_spec(), model)
    handed_out = learner.weights()
    before = {name: array.copy() for name, array in handed_out.items()}
    learner.update(rollout_batches(*rollouts(model)), 0.02)
    assert all((handed_out[name] == before[name]).all() for name in before)
    assert any((handed_out[name] != array).any() for name, array in learner.weights().items())


def test_a_rollout_worker_computes_in_the_threads_it_was_given_cores_for():
    """And not in those that OMP_NUM_THREADS or the machine says, which round differently."""
    torch.set_num_threads(3)
    try:
        RolloutWorker(MICRO.model_dump_json(), "torch", "cpu", "fp32", cpus=0.5)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("stated", "precision", "limit"), [(None, "fp32", 0.02), (None, "bf16", 1.0), (0.1, "bf16", 0.1)]
)
def test_the_limit_on_mismatch_is_that_of_the_precision_unless_stated(stated, precision, limit):
    assert RunConfig(max_logprob_mismatch=stated).mismatch_limit(precision) == limit


def test_rollout_batches_keep_prompts_completions_and_rewards_together(model):
    numbers, prompts, drawn, rewards_PG = rollouts(model)
    shuffle = [7, 0, 11, 3, 8, 1, 9, 2, 10, 4, 6, 5]
    rows = [i * 4 + j for i in shuffle for j in range(4)]
    shuffled = Completions(drawn.tokens_NC[rows], drawn.logprobs_NC[rows], drawn.length_N[rows], 0)
    batches = rollout_batches(shuffle, [prompts[i] for i in shuffle], shuffled, rewards_PG[shuffle])

    def lines(batch):
        for n, (tokens, mask, logprobs) in enumerate(
            zip(batch.tokens_NC, batch.mask_NC, batch.sampler_logprobs_NC, strict=True)
        ):
            length = int(mask.sum())
            prompt, reward = batch.prompts_PT[n // 4], batch.rewards_PG[n // 4, n % 4]
            yield (
                int(batch.numbers_P[n // 4]),
                prompt.tolist(),
                tokens[:length].tolist(),
                logprobs[:length].tolist(),
                float(reward),
            )

    expected = [
        (
            numbers[n // 4],
            prompts[n // 4].tolist(),
            row,
            drawn.logprobs_NC[n, : len(row)].tolist(),
            float(rewards_PG[n // 4, n % 4]),
        )
        for n, row in enumerate(drawn.rows)
    ]
    assert sorted(line for batch in batches for line in lines(batch)) == sorted(expected)
    lengths = [batch.prompts_PT.shape[1] for batch in batches]
    assert lengths == sorted(set(lengths))
    assert len(lengths) > 1


@pytest.mark.parametrize(("completion_tokens", "symbols"), [(1, 60), (5, 60), (5, 10)])
def test_what_a_group_shares_changes_neither_value_nor_gradient(completion_tokens, symbols):
    """Against each completion with its own prompt; of two symbols only, many completions begin alike."""
    model = decoders.build(DECODERS["tiny"], seed=5)
    generator = torch.Generator().manual_seed(0)
    prompts_PT = torch.randint(8, 60, (3, 7), generator=generator)
    tokens_NC = torch.randint(8, symbols, (60, completion_tokens), generator=generator)
    weights_NCV = torch.randn((60, completion_tokens, 64), generator=generator)
    prefixes = UniquePrefixes.of(prompts_PT.numpy(), tokens_NC.numpy())
    different = {(1, 60): 3, (5, 60): 60, (5, 10): 29}[completion_tokens, symbols]
    assert len(prefixes.row_N.unique()) == different
    whole_NT = torch.cat([prompts_PT.repeat_interleave(20, dim=0), tokens_NC[:, :-1]], dim=1)
    found = []
    for logprobs_NCV in (group_logprobs(model, prefixes), completion_logprobs(model, whole_NT, completion_tokens)):
        (logprobs_NCV * weights_NCV).sum().backward()
        found.append([logprobs_NCV.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
        model.zero_grad()
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-3)


@given(
    tokens_NC=arrays(np.int64, st.tuples(st.sampled_from([6, 96]), st.integers(1, 4)), elements=st.integers(0, 2)),
    group=st.sampled_from([1, 2, 6]),
)
def test_beginnings_are_those_of_the_completions_and_each_there_once(tokens_NC, group):
    prompts_PT = np.arange(len(tokens_NC) // group)[:, None] + np.arange(5)
    prefixes = UniquePrefixes.of(prompts_PT, tokens_NC)
    assert torch.equal(prefixes.prompts_PT, torch.from_numpy(prompts_PT))
    owner_N = np.arange(len(tokens_NC)) // group
    assert (prefixes.tokens_UC[prefixes.row_N].numpy() == tokens_NC[:, :-1]).all()
    assert (prefixes.prompt_U[prefixes.row_N].numpy() == owner_N).all()
    different = {(int(owner), *row[:-1].tolist()) for owner, row in zip(owner_N, tokens_NC, strict=True)}
    assert len(prefixes.row_N.unique()) == len(different)
    assert len(prefixes.tokens_UC) == math.ceil(len(different) / ROW_MULTIPLE) * ROW_MULTIPLE
