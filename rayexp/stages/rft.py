"""Rejection-sampling fine-tuning, as a value."""

from typing import ClassVar, Literal

from rayexp.config import Count
from rayexp.rewards import Reward
from rayexp.rewards.answer import Answer
from rayexp.stages.base import Metric
from rayexp.stages.rollouts import ROLLOUT_METRICS, RolloutStage


class RFT(RolloutStage):
    """Rejection-sampling fine-tuning, also called expert iteration: the policy's right completions become its data.

    Each of ``rounds`` rounds draws a group of completions for each of ``prompts_per_round`` prompts from the current
    policy. It keeps the right ones, each distinct one once for its prompt. Then it takes ``updates`` optimiser steps of
    ``batch_samples`` kept completions each, with the loss on the completion, in epochs of a fresh order. A round
    without a right completion leaves weights and optimiser as they are. The schedule goes on, so that the learning rate
    of a round depends on its number alone. There is no reference and no KL; a wrong completion teaches nothing.
    """

    name: ClassVar[str] = "RFT"
    metrics: ClassVar[tuple[Metric, ...]] = (
        *ROLLOUT_METRICS,
        Metric("rft/loss", "nats/token", "Mean loss of the kept completions' tokens, over the updates of a round"),
        Metric("rft/kept", "completions", "Right completions of a round, each distinct one once a prompt"),
        Metric("rft/solved_prompts", "share", "Share of a round's prompts with a right completion"),
        Metric("rft/grad_norm", "", "Norm of the gradient before clipping, mean over the updates of a round"),
        Metric("rft/max_logprob_mismatch", "nats", "Largest difference of sampler and learner in a token's log-prob"),
    )
    kind: Literal["rft"] = "rft"
    rounds: Count = 8
    prompts_per_round: Count = 256
    updates: Count = 16
    batch_samples: Count = 64

    @property
    def short_label(self) -> str:
        return f"rft-{self.prompts_label}"

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """The reward of a right answer. Completions that get it are kept."""
        return (Answer(),)

    @property
    def steps(self) -> int:
        return self.rounds

    @property
    def prompts_per_step(self) -> int:
        return self.prompts_per_round

    @property
    def flops(self) -> float:
        return self.flops_per_pass(self.completions) + 3 * self.flops_per_pass(
            self.rounds * self.updates * self.batch_samples
        )
