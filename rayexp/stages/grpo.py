"""GRPO, as a value."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from rayexp.config import Count, name_in
from rayexp.formatting import number
from rayexp.objectives.advantages import ADVANTAGES, OF_VALUES
from rayexp.objectives.kl import ESTIMATORS
from rayexp.objectives.reductions import REDUCTIONS
from rayexp.rewards import AnyReward, Reward
from rayexp.rewards.answer import Answer
from rayexp.stages.base import Metric, Stage, task_to_fit
from rayexp.stages.rollouts import ROLLOUT_METRICS, RolloutStage


class GRPO(RolloutStage):
    """Group relative policy optimisation.

    kl_beta: weight of the KL to the reference. It is required, because a hidden default is how other systems lose it.
    ``objectives.losses`` explains what it weighs, and compares it with TRL's. kl_estimator and kl_in: see
    ``objectives.kl``.

    advantage: ``group_std`` (GRPO), ``mean_only`` (Dr. GRPO), ``leave_one_out`` (RLOO), or ``critic`` (PPO at gamma =
    lambda = 1, not scaled). With ``critic`` the baseline of each token is the value that a second network predicts
    before it (``rl.critic``). Groups are drawn all the same, so that rollouts are equal. loss_reduction:
    ``sequence_mean`` (GRPO) or ``token_sum`` (Dr. GRPO).

    updates: passes over each batch of rollouts; at 1 the update is exactly on-policy. staleness: 1 draws the rollouts
    of the next step while the learner works, from weights that lack its last update. The ratio in the loss then refers
    to the probabilities that the sampler recorded. rewards: the reward of a completion is their weighted sum.

    reference: the policy to which the KL is taken. ``init``: the policy from which this stage starts. ``root``: the one
    from which the first GRPO stage of the chain starts, so that several GRPO stages share one reference.

    filter: which rollouts a step learns from. ``resample`` draws a group again if all its members have the same reward,
    up to ``rl.resampling.MOST_DRAWS`` times, also with a critic, which could learn from it. ``unsolved`` takes only
    prompts that no completion of the stage has answered so far, and ends the stage when none is left. mask_truncated:
    learn nothing from completions that were cut off before they ended (DAPO); they still count in their groups.
    """

    version: ClassVar[int] = 4  # since then grpo/clipped counts the tokens that the clip cuts, over all updates
    fields_added_later: ClassVar[frozenset[str]] = RolloutStage.fields_added_later | {
        "staleness",
        "reference",
        "filter",
        "mask_truncated",
    }
    name: ClassVar[str] = "GRPO"
    metrics: ClassVar[tuple[Metric, ...]] = (
        *ROLLOUT_METRICS,
        Metric("grpo/loss", "", "Clipped loss with the KL penalty, mean over completions"),
        Metric("grpo/kl", "nats/completion", "KL to the reference by the stage's estimator"),
        Metric(
            "grpo/kl_penalty",
            "",
            "Cost of the KL: kl_beta times it, reduced like the loss, or summed over a completion with kl_in=reward",
        ),
        Metric("grpo/entropy", "nats/token", "Entropy of the policy's next token at the visited prefixes"),
        Metric("grpo/clipped", "share", "Share of the tokens whose gradient the clip cuts, mean over a step's updates"),
        Metric("grpo/critic_loss", "", "Mean squared error of the critic's values over all tokens, before the update"),
        Metric("grpo/critic_explained", "share", "Share of the variance of returns that the critic's values explain"),
        Metric("grpo/grad_norm", "", "Norm of the gradient before clipping"),
        Metric("grpo/max_logprob_mismatch", "nats", "Largest difference of sampler and learner in a token's log-prob"),
        Metric("grpo/sampler_kl", "nats/completion", "KL of the sampler to the learner, estimated from completions"),
        Metric("grpo/effective_sample_share", "share", "Effective sample size of the completions, as a share of them"),
    )
    kind: Literal["grpo"] = "grpo"
    rewards: tuple[AnyReward, ...] = Field(default=(Answer(),), min_length=1)
    steps: Count = 60
    prompts_per_step: Count = 64
    kl_beta: float = Field(ge=0)
    kl_estimator: Annotated[str, name_in(ESTIMATORS)] = "exact"
    kl_in: Literal["loss", "reward"] = "loss"
    advantage: Annotated[str, name_in(ADVANTAGES)] = "group_std"
    loss_reduction: Annotated[str, name_in(REDUCTIONS)] = "sequence_mean"
    clip_ratio: float = Field(default=0.2, gt=0, lt=1)
    updates: Count = 1
    staleness: int = Field(default=0, ge=0, le=1)
    reference: Literal["init", "root"] = "init"
    filter: Literal["none", "resample", "unsolved"] = "none"
    mask_truncated: bool = False

    @model_validator(mode="after")
    def _filter(self) -> Self:
        if self.staleness and self.filter != "none":
            raise ValueError(
                f"filter={self.filter!r} needs staleness=0, not {self.staleness}, because the rewards of a step decide "
                "what is drawn next"
            )
        if self.filter == "unsolved" and self.curriculum:
            raise ValueError(
                "curriculum and filter='unsolved' exclude each other, because each decides which prompts come next; "
                "leave one out"
            )
        if self.filter == "unsolved" and self.hint_tokens:
            raise ValueError(
                f"filter='unsolved' needs hint_tokens=0, not {self.hint_tokens}, because a prompt that gives part of "
                "its answer away is not solved"
            )
        return self

    @model_validator(mode="after")
    def _rewards(self, info: ValidationInfo) -> Self:
        task = task_to_fit(self, info)
        for reward in self.rewards:
            if task and isinstance(reward, Reward):
                reward.require_task(task)
        return self

    @property
    def short_label(self) -> str:
        return f"grpo-{self.prompts_label}-b{number(self.kl_beta)}" + ("-stale" if self.staleness else "")

    @property
    def reference_stage(self) -> Stage:
        """The stage whose model is the reference."""
        if self.reference == "init":
            return self.init
        return next(stage.init for stage in self.lineage if isinstance(stage, GRPO))

    @property
    def models(self) -> tuple[Stage, ...]:
        """The policy's, then the reference's if that is another one. A reference that is the policy at the start is
        copied, not loaded twice."""
        others = (self.reference_stage,) if self.kl_beta > 0 and self.reference_stage is not self.init else ()
        return (self.init, *others)

    @property
    def draws_ahead(self) -> bool:
        return bool(self.staleness)

    @property
    def only_unsolved(self) -> bool:
        return self.filter == "unsolved"

    @property
    def learns_from_truncated(self) -> bool:
        return not self.mask_truncated

    @property
    def resamples(self) -> bool:
        return self.filter == "resample"

    @property
    def has_critic(self) -> bool:
        """True if the baseline is learnt."""
        return self.advantage in OF_VALUES

    @property
    def trained_parameters(self) -> int:
        """Parameters of the policy, and as many for a critic, whose smaller head is counted like the policy's."""
        return self.root.parameters * (1 + self.has_critic)

    @property
    def flops(self) -> float:
        """Estimated operations. The sampler reads a token once, the reference once if there is one, and the learner
        forward and backward. A critic reads it once for its values, then forward and backward as well. How many
        completions a filter draws again or leaves out is not known, and not counted."""
        learning = 3 * self.updates
        passes = 1 + (self.kl_beta > 0) + learning + self.has_critic * (1 + learning)
        return passes * self.flops_per_pass(self.completions)
