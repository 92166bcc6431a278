"""Completions by VLLMSampler, by the engine in it called directly, and by TorchSampler: the same prompts and weights.

The direct call asks for what GRPO needs (a seed for each prompt, log-probabilities of what was drawn) and throws its
answer away: what VLLMSampler adds is its bookkeeping. A second one leaves the seeds out, and shows what they cost.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, Samples, alternate, publish
from rayexp.learning import decoder
from rayexp.presets import DECODERS
from rayexp.sampling.protocol import prompt_seed
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.world import Corpus, World, vocabulary

PROMPTS = 64
GROUP = 8
ROUNDS = 9
TARGET = 0.9


def run() -> list[Row]:
    device = decoder.resolve_device("auto")
    shape, world = DECODERS["tiny"], World("composition")
    model = decoder.build(shape, 0, device)
    reference = TorchSampler(model)
    sampler = VLLMSampler(shape, device=device.type)
    sampler.sync({name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}, version=0)
    torch.set_num_threads(1)  # after vLLM, which sets it too

    rectangles = Corpus(world, seed=0).tasks("grpo", "ood", np.arange(PROMPTS))
    prompts = [prompt.tolist() for rectangle in rectangles for prompt in rectangle.prompts]
    seeds = [prompt_seed(0, "benchmark", i) for i in range(PROMPTS)]
    limits = [world.completion_budget(world.cells.ood[0])] * PROMPTS

    timed = alternate(
        {
            "sampler": lambda: sampler.generate(prompts, seeds, GROUP, limits),
            "vLLM": direct(sampler, prompts, seeds, limits),
            "vLLM, unseeded": direct(sampler, prompts, [None] * PROMPTS, limits),
            "torch": lambda: reference.generate(prompts, seeds, GROUP, limits),
        },
        ROUNDS,
        device.type,
    )
    return [
        row("VLLMSampler : vLLM", timed["sampler"], timed["vLLM"], TARGET),
        row("VLLMSampler : unseeded", timed["sampler"], timed["vLLM, unseeded"]),
        row("TorchSampler : vLLM", timed["torch"], timed["vLLM"]),
    ]


def direct(
    sampler: VLLMSampler, prompts: list[list[int]], seeds: Sequence[int | None], limits: list[int]
) -> Callable[[], Any]:
    """``LLM.generate`` of the sampler's own engine."""
    from vllm import SamplingParams

    def turn() -> Any:
        params = [
            SamplingParams(
                n=GROUP,
                seed=seed,
                temperature=1.0,
                max_tokens=limit,
                logprobs=0,
                stop_token_ids=[vocabulary.EOS],
                detokenize=False,
            )
            for limit, seed in zip(limits, seeds, strict=True)
        ]
        return sampler._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)

    return turn


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
