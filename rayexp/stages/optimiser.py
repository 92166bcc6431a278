"""Settings of the optimiser that every training stage has."""

from typing import Literal

from pydantic import Field

from rayexp.config import Value


class AdamW(Value):
    """AdamW with linear warm-up, then a cosine to a tenth or a constant rate; gradients clipped by global norm.

    epsilon: added to the root of the second moment. Adam divides any gradient by its own size, rounding noise of 1e-9
    included. Where a gradient may vanish, as in GRPO without a right completion, a larger epsilon keeps noise small.
    precision: ``fp32``, or ``bf16`` for autocast over fp32 weights. GRPO's reference has the precision of its policy,
    so that equal weights have a KL of zero; Q is measured in fp32 in either case.
    """

    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, ge=1e-30, le=1e-2)  # a much smaller one is 0 in fp32, and 0 / 0 is no update
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
