"""Completions by VLLMSampler, by direct calls of its engine, by TorchSampler and by HF generate, with the same prompts
and weights.

The direct call requests what GRPO needs (a seed for each prompt, log-probabilities of the drawn tokens) and discards
the result, so the difference to VLLMSampler is the latter's bookkeeping. A second direct call has no seeds, and shows
their cost. Another row measures VLLMSampler in its actor, by the wall clock from the driver's request to its result,
against the direct call in the same process.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.measure import Row, Samples, alternate, publish
from rayexp.config import RunConfig
from rayexp.distributed import runtime
from rayexp.distributed.rollout_manager import RolloutManager
from rayexp.models import devices, factory
from rayexp.sampling.base import prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.stages import GRPO, Pretrain
from rayexp.studies.presets import DECODERS, SCALES
from rayexp.tasks import Task
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY

PROMPTS = 64
GROUP = 8
ROUNDS = {"tiny": 9, "paper": 3}
OF_DIRECT, OF_VLLM = 0.9, 3.0


def run() -> list[Row]:
    rows = [row for name, rounds in ROUNDS.items() for row in in_process(name, rounds)]
    return [*rows, in_its_actor("tiny", ROUNDS["tiny"])]


def questions(task: Task) -> tuple[list[list[int]], list[int], list[int]]:
    """Return prompts, seeds, and the largest number of tokens of each completion."""
    token_batches = task.of_role("grpo", 0, "ood", np.arange(PROMPTS))
    prompts = [prompt for token_batch in token_batches for prompt in token_batch.prompts]
    seeds = [prompt_seed(0, "benchmark", i) for i in range(PROMPTS)]
    return prompts, seeds, [task.max_completion_tokens(task.cells("ood")[0])] * PROMPTS


def in_process(name: str, rounds: int) -> list[Row]:
    device = devices.resolve_device("auto")
    shape = DECODERS[name]
    model = factory.build(shape, VOCABULARY, 0, device)
    reference = TorchSampler(model)
    sampler = VLLMSampler(model.config, sequence_tokens=shape.context_tokens, device=device.type)
    sampler.sync({name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}, version=0)
    torch.set_num_threads(1)  # after vLLM, which sets it too
    prompts, seeds, limits = questions(StringTask(axis="composition"))
    timed = alternate(
        {
            "sampler": lambda: sampler.generate(prompts, seeds, GROUP, limits),
            "vLLM": lambda: direct(sampler, prompts, seeds, limits),
            "vLLM, unseeded": lambda: direct(sampler, prompts, [None] * PROMPTS, limits),
            "torch": lambda: reference.generate(prompts, seeds, GROUP, limits),
            "HF generate": hf_generate(model, prompts, limits[0]),
        },
        rounds,
        device.type,
    )
    return [
        row(f"{name}, VLLMSampler : vLLM", timed["sampler"], timed["vLLM"], OF_DIRECT),
        row(f"{name}, the same : unseeded", timed["sampler"], timed["vLLM, unseeded"]),
        row(f"{name}, TorchSampler : vLLM", timed["torch"], timed["vLLM"], OF_VLLM if name == "tiny" else None),
        row(f"{name}, TorchSampler : HF", timed["torch"], timed["HF generate"]),
    ]


def hf_generate(model: Any, prompts: list[list[int]], limit: int) -> Callable[[], Any]:
    """Return a function that calls ``model.generate`` with the options that make it do the same work."""
    ids_NT = torch.tensor(prompts, device=model.device).repeat_interleave(GROUP, dim=0)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": limit}
    tokens = {"pad_token_id": VOCABULARY.pad, "eos_token_id": VOCABULARY.eos}
    mask_NT = torch.ones_like(ids_NT)
    return lambda: model.generate(ids_NT, attention_mask=mask_NT, **settings, **tokens)


def in_its_actor(name: str, rounds: int) -> Row:
    """Time the wait of a GRPO stage against the direct call, which is timed in the actor."""
    budget, task = SCALES[name], StringTask(axis="composition")
    base = Pretrain(
        task=task,
        decoder=DECODERS[name],
        ood_ratio=0.0,
        samples=1,
        batch_samples=1,
        optimiser=budget.pretrain,
        seed=0,
    )
    spec = GRPO(init=base, prompt_role="ood", kl_beta=0.0, optimiser=budget.grpo, seed=0)
    prompts, seeds, limits = questions(task)

    def direct_call(worker: Any) -> float:
        started = time.perf_counter()
        direct(worker._sampler, prompts, seeds, limits)
        return time.perf_counter() - started

    runtime.connect(cpus=2)
    rollout_manager = RolloutManager(spec, RunConfig())
    weights = {key: tensor.numpy() for key, tensor in factory.build(DECODERS[name], VOCABULARY, 0).state_dict().items()}
    rollout_manager.sync([ray.put(weights)], 0)
    (actor,) = rollout_manager.workers
    timed = alternate(
        {
            "workers": wall_clock(lambda: rollout_manager.generate(prompts, seeds, GROUP, limits)),
            "direct": lambda: ray.get(actor.__ray_call__.remote(direct_call)),
        },
        rounds,
    )
    rollout_manager.stop()
    ray.shutdown()
    return row(f"{name}, in its actor : vLLM", timed["workers"], timed["direct"], OF_DIRECT)


def wall_clock(work: Callable[[], object]) -> Callable[[], float]:
    """Return ``work`` timed by the wall clock, because the calling process only waits."""

    def turn() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return turn


def direct(sampler: Any, prompts: list[list[int]], seeds: Sequence[int | None], limits: list[int]) -> Any:
    """Call ``LLM.generate`` of the sampler's own engine."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            n=GROUP,
            seed=seed,
            temperature=1.0,
            max_tokens=limit,
            logprobs=0,
            stop_token_ids=[VOCABULARY.eos],
            detokenize=False,
        )
        for limit, seed in zip(limits, seeds, strict=True)
    ]
    return sampler._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)


def row(case: str, ours: Samples, peer: Samples, target: float | None = None) -> Row:
    ratio = ours.faster_than(peer)
    return Row(
        case=case,
        ours=ours.rate(PROMPTS * GROUP, "seq"),
        peer=peer.rate(PROMPTS * GROUP, "seq"),
        ratio=f"{ratio:.2f}",
        target=f">= {target}" if target else "",
        met=ratio >= target if target else None,
    )


if __name__ == "__main__":
    publish(run())
