"""Pretraining, as a value."""

import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from rayexp.config import Count, Seed
from rayexp.formatting import number
from rayexp.stages.base import Metric, Pool, RootStage, task_to_fit
from rayexp.stages.optimiser import AdamW


class Pretrain(RootStage):
    """Next-token training on a mixture of ID and OOD samples, at a fixed total budget.

    decoder: a shape that is trained from scratch, or a pretrained model that is trained further.

    copied_items: makes the OOD samples copies of test items, to measure contamination. Of the first ``copied_items`` of
    each OOD cell, one half is copied again and again, and the other half is its control (``tasks.copies``). The ratio
    sets how often. By default OOD samples are in no test.

    exposure: when OOD samples come. ``uniform`` spreads them over all samples; ``early`` has as many in the first half
    of the samples, at twice the rate, and none later; ``late`` has them in the second half. stop_after: number of steps
    after which it stops, with the learning rate of that step, and publishes the state to go on from (``Extend``); by
    default it stops at the end.
    """

    version: ClassVar[int] = 2  # since then bf16 on CPUs has another attention
    fields_added_later: ClassVar[frozenset[str]] = frozenset({"copied_items", "exposure", "stop_after"})
    pool: ClassVar[Pool] = "train"
    name: ClassVar[str] = "pretraining"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("pretrain/id/loss", "nats/token", "Mean next-token loss of the ID samples since the last point"),
        Metric("pretrain/ood/loss", "nats/token", "Mean next-token loss of the OOD samples since the last point"),
        Metric("pretrain/learning_rate", "", "Learning rate of the step"),
        Metric("pretrain/tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
    )
    kind: Literal["pretrain"] = "pretrain"
    seed: Seed
    ood_ratio: float = Field(ge=0, le=0.5)
    copied_items: int | None = Field(default=None, ge=2, multiple_of=2)
    exposure: Literal["uniform", "early", "late"] = "uniform"
    samples: Count
    batch_samples: Count
    stop_after: Count | None = None
    optimiser: AdamW

    @model_validator(mode="after")
    def _stops(self) -> Self:
        if self.stop_after and self.stop_after >= self.schedule_steps:
            raise ValueError(f"stop_after={self.stop_after} should be below {self.schedule_steps}, the last step")
        return self

    @model_validator(mode="after")
    def _copies(self, info: ValidationInfo) -> Self:
        task = task_to_fit(self, info)
        if (
            task
            and self.copied_items
            and 0 < self.ood_samples < (least := self.copied_items // 2 * len(task.cells("ood")))
        ):
            raise ValueError(
                f"ood_ratio={number(self.ood_ratio)} makes {self.ood_samples} OOD samples; "
                f"copied_items={self.copied_items} needs none, or at least {least}, a copy of each copied item"
            )
        return self

    @property
    def chain_label(self) -> str:
        exposure = "" if self.exposure == "uniform" else f"-{self.exposure}"
        copies = f"-copies{self.copied_items}" if self.copied_items else ""
        return f"{self.task.label}-r{number(self.ood_ratio)}{copies}{exposure}-s{self.seed}"

    @property
    def ood_samples(self) -> int:
        """OOD samples of the whole budget."""
        return math.floor(self.samples * self.ood_ratio)

    @property
    def short_label(self) -> str:
        return f"{self.kind}-{self.stop_after}" if self.stop_after else self.kind

    @property
    def steps(self) -> int:
        return self.stop_after or self.schedule_steps

    @property
    def schedule_steps(self) -> int:
        """Optimiser steps of the whole budget; the last batch may be smaller."""
        return math.ceil(self.samples / self.batch_samples)

    @property
    def keeps_state(self) -> bool:
        return self.stop_after is not None

    @property
    def flops(self) -> float:
        return self.flops_of_steps(0, self.steps)

    def flops_of_steps(self, start: int, stop: int) -> float:
        """Return the estimated operations of the steps from ``start`` up to, but without, ``stop``."""
        first, last = (min(step * self.batch_samples, self.samples) for step in (start, stop))
        return 3 * self.flops_per_pass(last - first)

    def ood_before(self, number_N: np.ndarray) -> np.ndarray:
        """Return how many OOD samples come before the samples with these numbers."""
        if self.exposure == "uniform":
            return np.floor(number_N * self.ood_ratio).astype(np.int64)
        total, half = self.ood_samples, -(-self.samples // 2)
        first = 0 if self.exposure == "early" else self.samples - half
        return np.clip(number_N - first, 0, half) * total // half
