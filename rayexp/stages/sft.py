"""Supervised fine-tuning, as a value."""

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from rayexp.config import Count, Seed
from rayexp.stages.base import ChildStage, Metric, Pool, task_to_fit
from rayexp.stages.optimiser import AdamW


class SFT(ChildStage):
    """Fine-tuning with the loss on the completion.

    samples: number of different ones. ood_samples: number of OOD ones among them; by default none, as in the paper.
    """

    version: ClassVar[int] = 2  # as of pretraining
    fields_added_later: ClassVar[frozenset[str]] = frozenset({"ood_samples"})
    pool: ClassVar[Pool] = "train"
    name: ClassVar[str] = "SFT"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("sft/id/loss", "nats/token", "Mean loss of the completions' tokens since the last point"),
        Metric("sft/ood/loss", "nats/token", "The same for OOD samples, where there are any"),
        Metric("sft/learning_rate", "", "Learning rate of the step"),
        Metric("sft/tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
    )
    kind: Literal["sft"] = "sft"
    samples: Count = 2_000
    epochs: Count = 2
    batch_samples: Count = 64
    optimiser: AdamW
    seed: Seed
    ood_samples: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ood(self, info: ValidationInfo) -> Self:
        if self.ood_samples > self.samples:
            raise ValueError(f"ood_samples={self.ood_samples} should be at most samples={self.samples}")
        task = task_to_fit(self, info)
        if self.ood_samples and task and not task.cells("ood"):
            raise ValueError(f"ood_samples={self.ood_samples} should be 0, because {task.label} has no OOD cells")
        return self

    @property
    def steps(self) -> int:
        return math.ceil(self.samples * self.epochs / self.batch_samples)

    @property
    def flops(self) -> float:
        return 3 * self.flops_per_pass(self.samples * self.epochs)
