"""Continued pretraining, as a value, and the division of a pretraining into stages."""

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from rayexp.config import Count
from rayexp.stages.base import ChildStage, Metric, Pool, Stage
from rayexp.stages.optimiser import AdamW
from rayexp.stages.pretrain import Pretrain


class Extend(ChildStage):
    """The next steps of a pretraining that stopped before its end: same samples, same schedule, same optimiser.

    Its model is the same as if the pretraining had not stopped. Steps are counted from the start of the pretraining.
    stop_after: step after which it stops in turn; by default at the end.
    """

    pool: ClassVar[Pool] = "train"
    name: ClassVar[str] = "extended pretraining"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("extend/id/loss", "nats/token", "Mean next-token loss of the ID samples since the last point"),
        Metric("extend/ood/loss", "nats/token", "Mean next-token loss of the OOD samples since the last point"),
        Metric("extend/learning_rate", "", "Learning rate of the step"),
        Metric("extend/tokens_per_s", "tokens/s", "Tokens trained on a second, all ranks together"),
    )
    kind: Literal["extend"] = "extend"
    stop_after: Count | None = None

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if not isinstance(self.init, Pretrain | Extend) or not self.init.keeps_state:
            raise ValueError(f"init={self.init.label} cannot be continued; give a pretraining with stop_after")
        first, last = self.init.steps + 1, self.schedule_steps - 1
        if self.stop_after and not first <= self.stop_after <= last:
            raise ValueError(f"stop_after={self.stop_after} should be from {first} to {last}, or unset for the end")
        return self

    @property
    def pretraining(self) -> Pretrain:
        """The first part, whose settings hold for all parts."""
        assert isinstance(self.root, Pretrain)
        return self.root

    @property
    def optimiser(self) -> AdamW:
        return self.pretraining.optimiser

    @property
    def short_label(self) -> str:
        return f"{self.kind}-{self.stop_after}" if self.stop_after else self.kind

    @property
    def steps(self) -> int:
        return self.stop_after or self.schedule_steps

    @property
    def schedule_steps(self) -> int:
        return self.pretraining.schedule_steps

    @property
    def batch_samples(self) -> int:
        """Samples of a step."""
        return self.pretraining.batch_samples

    @property
    def continues(self) -> bool:
        return True

    @property
    def keeps_state(self) -> bool:
        return self.stop_after is not None

    @property
    def flops(self) -> float:
        return self.pretraining.flops_of_steps(self.init.steps, self.steps)


def published_at(whole: Pretrain, steps: Iterable[int]) -> list[Stage]:
    """Return a pretraining as stages that publish its model after each of these steps and at its end.

    Each stage continues the one before, so that nothing is trained twice. Raises ValidationError on a step that the
    pretraining does not have.
    """
    first, *rest = sorted(set(steps))
    stages: list[Stage] = [Pretrain.model_validate({**dict(whole), "stop_after": first})]
    for stop_after in (*rest, None):
        stages.append(Extend.model_validate({"init": stages[-1], "stop_after": stop_after}))
    return stages
