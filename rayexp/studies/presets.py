"""Decoders and budgets by name.

A ``Budget`` has the sizes, optimisers and sampler of a scale. Studies combine it with the settings that they vary.
"""

from dataclasses import dataclass
from typing import Literal

from rayexp.models.config import Decoder
from rayexp.stages import AdamW

DECODERS: dict[str, Decoder] = {
    "toy": Decoder(layers=1, width=64, ff_width=128, heads=2, kv_heads=2),
    # 0.4M parameters: reaches 99 % on ID prompts in half a minute of pretraining on one CPU core.
    "tiny": Decoder(layers=2, width=128, ff_width=384, heads=4, kv_heads=4),
    # 3.3M parameters: the same phenomenon, in minutes on a GPU.
    "small": Decoder(layers=4, width=256, ff_width=704, heads=4, kv_heads=4),
    # 45M parameters in 4 layers: the paper's decoder, as far as it is known.
    "paper": Decoder(layers=4, width=1024, ff_width=2816, heads=16, kv_heads=4),
    # Common shapes, without their usual vocabulary, for a user's own studies. They were never run here.
    "1b": Decoder(layers=16, width=2048, ff_width=8192, heads=32, kv_heads=8, context_tokens=2048),
    "3b": Decoder(layers=28, width=3072, ff_width=8192, heads=24, kv_heads=8, context_tokens=2048),
    "7b": Decoder(layers=32, width=4096, ff_width=11_008, heads=32, kv_heads=32, context_tokens=2048),
}


@dataclass(frozen=True)
class Budget:
    """The spending of one scale. Repeated samples count each time.

    sampler: torch at the scales for CPUs, where it draws a few tokens from a small decoder in a fourth of the time of
    vLLM's bookkeeping (docs/performance.md).
    """

    name: str
    decoder: Decoder
    pretrain_samples: int
    pretrain_batch: int
    pretrain: AdamW
    sft_samples: int
    sft: AdamW
    grpo_steps: int
    grpo_prompts_per_step: int
    grpo_group_size: int
    grpo: AdamW
    sampler: Literal["vllm", "torch"]
    prompts_per_cell: int
    ood_ratios: tuple[float, ...]
    kl_betas: tuple[float, ...]
    seeds: tuple[int, ...]


#: GRPO's learning rates fall with the root of the number of parameters. Adam moves every parameter by about the rate,
#: and the length of the whole step decides how far the policy moves. At 3e-4, noise alone moves a tiny decoder by 0.7
#: nats of KL a completion.
SCALES: dict[str, Budget] = {
    # A smoke test of a minute; far too short to learn anything.
    "toy": Budget(
        name="toy",
        decoder=DECODERS["toy"],
        pretrain_samples=1_024,
        pretrain_batch=128,
        pretrain=AdamW(learning_rate=3e-3, warmup_steps=2),
        sft_samples=128,
        sft=AdamW(learning_rate=3e-4),
        grpo_steps=3,
        grpo_prompts_per_step=8,
        grpo_group_size=4,
        grpo=AdamW(learning_rate=1e-4, schedule="constant", epsilon=1e-5),
        sampler="torch",
        prompts_per_cell=20,
        ood_ratios=(0.0, 0.5),
        kl_betas=(0.1,),
        seeds=(0,),
    ),
    "tiny": Budget(
        name="tiny",
        decoder=DECODERS["tiny"],
        pretrain_samples=40_000,
        pretrain_batch=128,
        # fp32, because this scale is for CPUs. Without bf16 units they are fifteen times slower in bf16; with them they
        # are at most twice as fast.
        pretrain=AdamW(learning_rate=3e-3, warmup_steps=15, weight_decay=0.01),
        sft_samples=2_000,
        sft=AdamW(learning_rate=3e-4, warmup_steps=5),
        grpo_steps=60,
        grpo_prompts_per_step=32,
        grpo_group_size=8,
        grpo=AdamW(learning_rate=1e-4, warmup_steps=5, schedule="constant", epsilon=1e-5),
        sampler="torch",
        prompts_per_cell=200,
        ood_ratios=(0.0, 0.003, 0.01, 0.3),
        kl_betas=(0.1, 1.0),
        seeds=(0, 1, 2),
    ),
    "small": Budget(
        name="small",
        decoder=DECODERS["small"],
        pretrain_samples=2**21,
        pretrain_batch=1024,
        pretrain=AdamW(learning_rate=1e-3, warmup_steps=100, weight_decay=0.01, precision="bf16"),
        sft_samples=2_000,
        sft=AdamW(learning_rate=1e-4, warmup_steps=5, precision="bf16"),
        grpo_steps=60,
        grpo_prompts_per_step=64,
        grpo_group_size=8,
        grpo=AdamW(learning_rate=4e-5, warmup_steps=5, schedule="constant", epsilon=1e-5),
        sampler="vllm",
        prompts_per_cell=1_000,
        ood_ratios=(0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5),
        kl_betas=(0.0, 0.04, 0.2, 1.0),
        seeds=(0, 1, 2),
    ),
    "paper": Budget(
        name="paper",
        decoder=DECODERS["paper"],
        pretrain_samples=2**26,
        pretrain_batch=4096,
        pretrain=AdamW(learning_rate=5e-4, warmup_steps=500, weight_decay=0.01, precision="bf16"),
        sft_samples=2_000,
        sft=AdamW(learning_rate=3e-5, warmup_steps=5, precision="bf16"),
        grpo_steps=60,
        grpo_prompts_per_step=64,
        grpo_group_size=8,
        grpo=AdamW(learning_rate=1e-5, warmup_steps=5, schedule="constant", epsilon=1e-5),
        sampler="vllm",
        prompts_per_cell=2_000,
        ood_ratios=(0.0, 0.001, 0.003, 0.01, 0.05, 0.1, 0.25, 0.5),
        kl_betas=(0.0, 0.04, 0.1, 0.2, 1.0),
        seeds=(0, 1, 2),
    ),
}
