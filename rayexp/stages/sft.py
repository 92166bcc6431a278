"""Supervised fine-tuning, as a value."""

import math
from typing import ClassVar, Literal

from rayexp.config import Count, Seed
from rayexp.stages.base import ChildStage, Metric, Pool
from rayexp.stages.optimiser import AdamW


class SFT(ChildStage):
    """Fine-tuning on ID samples only, with the loss on the completion."""

    version: ClassVar[int] = 2  # as of pretraining
    pool: ClassVar[Pool] = "train"
    name: ClassVar[str] = "SFT"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sft/id/loss", "nats/token", "Mean loss of the completions' tokens since the last point"),
        Metric("sft/learning_rate", "", "Learning rate of the step"),
        Metric("sft/tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
    )
    kind: Literal["sft"] = "sft"
    samples: Count = 2_000
    epochs: Count = 2
    batch_samples: Count = 64
    optimiser: AdamW
    seed: Seed

    @property
    def steps(self) -> int:
        return math.ceil(self.samples * self.epochs / self.batch_samples)

    @property
    def flops(self) -> float:
        return 3 * self.flops_per_pass(self.samples * self.epochs)
