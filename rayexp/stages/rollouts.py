"""Settings that all stages share in which a policy draws completions."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rayexp.config import Count, Seed
from rayexp.formatting import number
from rayexp.rewards import Reward
from rayexp.stages.base import ChildStage, Metric, Pool, Stage
from rayexp.stages.optimiser import AdamW
from rayexp.tasks import Task

ROLLOUT_METRICS = (
    Metric("rollout/reward", "", "Mean reward of the completions; with the reward `answer`, the share that is right"),
    Metric(
        "rollout/zero_variance_groups",
        "share",
        "Share of the groups whose members did equally well: no gradient without a critic",
    ),
    Metric("rollout/completion_tokens", "tokens", "Mean length of a completion"),
    Metric("rollout/tokens_per_s", "tokens/s", "Tokens of prompts and completions drawn a second, over whole steps"),
    Metric("rollout/drawn_per_kept", "", "Completions drawn for one that is learnt from, where groups are drawn again"),
    Metric("rollout/unsolved_prompts", "prompts", "Prompts without a right completion, where only such are taken"),
)


class RolloutStage(ChildStage):
    """A stage that goes in steps: draw groups of completions from the policy, then let the policy learn from them.

    prompt_role: cells that prompts are drawn from. id_share: share of the prompts that are of ID cells in their place,
    so that what is known stands beside what is asked for. prompt_count: number of different prompts. sampler:
    ``vllm``, or ``torch``, which is slower and needs no vLLM.
    """

    fields_added_later: ClassVar[frozenset[str]] = frozenset({"id_share"})
    pool: ClassVar[Pool] = "rollout"
    prompt_role: Literal["id", "ood", "probe"]
    id_share: float = Field(default=0.0, ge=0, lt=1)
    prompt_count: Count = 1_000
    group_size: int = Field(default=8, ge=2, le=1024)
    sampler: Literal["vllm", "torch"] = "vllm"
    optimiser: AdamW
    seed: Seed

    if TYPE_CHECKING:  # a field of some kinds, a property of others

        @property
        def rewards(self) -> tuple[Reward, ...]:
            """Rewards whose weighted sum a completion earns."""
            ...

        @property
        def prompts_per_step(self) -> int:
            """Prompts of which each step draws a group."""
            ...

    @model_validator(mode="after")
    def _prompts(self) -> Self:
        task = self.root.task
        if isinstance(task, Task) and not task.cells(self.prompt_role):
            raise ValueError(f"prompt_role is {self.prompt_role!r}; allowed: a role that the task {task.label} has")
        if self.id_share and self.prompt_role == "id":
            raise ValueError(f"id_share is {number(self.id_share)}; allowed with prompt_role 'id': 0, for all are")
        return self

    @property
    def prompt_roles(self) -> tuple[str, ...]:
        """Roles of the cells that prompts are drawn from: that in question, then that beside it."""
        return (self.prompt_role, "id") if self.id_share else (self.prompt_role,)

    @property
    def prompts_label(self) -> str:
        """Its prompts in a label: ``ood``, or ``ood+0.5id`` where half of them are of ID cells."""
        return f"{self.prompt_role}+{number(self.id_share)}id" if self.id_share else self.prompt_role

    @property
    def models(self) -> tuple[Stage, ...]:
        """Stages whose models its learner is made of: that of the policy, then those that stay as they are."""
        return (self.init,)

    @property
    def draws_ahead(self) -> bool:
        """True if the completions of a step are drawn while the learner still works on the step before."""
        return False

    @property
    def only_unsolved(self) -> bool:
        """True if a prompt with a right completion is not taken again."""
        return False

    @property
    def resamples(self) -> bool:
        """True if groups whose members all earned the same are drawn again."""
        return False

    @property
    def completions(self) -> int:
        """Completions drawn in all."""
        return self.steps * self.prompts_per_step * self.group_size
