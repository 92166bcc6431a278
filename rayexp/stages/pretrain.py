"""Pretraining, as a value."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rayexp.config import Count
from rayexp.formatting import number
from rayexp.stages.base import Metric, Pool, RootStage
from rayexp.stages.optimiser import AdamW
from rayexp.tasks import Task


class Pretrain(RootStage):
    """Next-token training from scratch on a mixture of ID and OOD samples, at a fixed total budget."""

    version: ClassVar[int] = 2  # since then bf16 on CPUs has another attention
    pool: ClassVar[Pool] = "train"
    name: ClassVar[str] = "pretraining"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("pretrain/id/loss", "nats/token", "Mean next-token loss of the ID samples since the last point"),
        Metric("pretrain/ood/loss", "nats/token", "Mean next-token loss of the OOD samples since the last point"),
        Metric("pretrain/learning_rate", "", "Learning rate of the step"),
        Metric("pretrain/tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
    )
    kind: Literal["pretrain"] = "pretrain"
    ood_ratio: float = Field(ge=0, le=0.5)
    samples: Count
    batch_samples: Count
    optimiser: AdamW

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.task, Task) and self.task.max_tokens > self.decoder.context_tokens:
            raise ValueError(
                f"decoder.context_tokens is {self.decoder.context_tokens}; allowed: at least "
                f"{self.task.max_tokens}, the longest sample of the task {self.task.label}"
            )
        return self

    @property
    def chain_label(self) -> str:
        return f"{self.task.label}-r{number(self.ood_ratio)}-s{self.seed}"

    @property
    def steps(self) -> int:
        """Optimiser steps; the last batch may be smaller."""
        return math.ceil(self.samples / self.batch_samples)

    @property
    def flops(self) -> float:
        return 3 * self.flops_per_pass(self.samples)
