"""Settings of all stages in which a policy draws completions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from rayexp.config import Count, Seed
from rayexp.rewards import Reward
from rayexp.stages.base import ChildStage, Metric, Pool, Stage, task_to_fit
from rayexp.stages.mixture import CellShares, PromptShare
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
    Metric("rollout/truncated", "share", "Share of the completions that were cut off before they ended"),
    Metric("rollout/tokens_per_s", "tokens/s", "Tokens of prompts and completions drawn a second, over whole steps"),
    Metric("rollout/drawn", "completions", "Completions drawn so far, whether or not they were learnt from"),
    Metric("rollout/right", "completions", "Right ones among them"),
    Metric(
        "rollout/expected_right",
        "completions",
        "Right ones to be expected among them, by the policy's probability of each prompt's gold completion",
    ),
    Metric("rollout/drawn_per_kept", "", "Completions drawn for one that is learnt from, where groups are drawn again"),
    Metric("rollout/unsolved_prompts", "prompts", "Prompts without a right completion, where only such are taken"),
)


class RolloutStage(ChildStage):
    """A stage whose steps draw groups of completions from the policy, then let the policy learn from them.

    prompt_role: role of the cells under study; by default prompts are drawn from these. mixture: cells to draw prompts
    from instead, such as ``id+ood`` or ``T+TT+0.5*TTT``, with at least one of ``prompt_role``. curriculum: mixture of
    the first step, such as ``id``. The last step draws from ``mixture``, or else from ``prompt_role``; in between each
    share changes by the same amount in every step. prompt_count: number of different prompts.

    hint_tokens: number h of tokens of the gold completion that are given with the prompt. The policy writes the rest,
    and learns from that alone; rewards judge the whole. hint_annealing: ``linear`` gives h - floor(s (h + 1) / S)
    tokens at step s of S, counted from 0, so that each number from h to 0 has as many steps; ``none`` always gives h.

    sampler: ``vllm``, or ``torch``, which is slower and needs no vLLM. temperature: of the drawn completions. The
    policy that learns, its KL and its reference have the same temperature; measurements are at 1.
    """

    fields_added_later: ClassVar[frozenset[str]] = frozenset(
        {"mixture", "curriculum", "hint_tokens", "hint_annealing", "temperature"}
    )
    pool: ClassVar[Pool] = "rollout"
    prompt_role: Literal["id", "ood", "probe"]
    mixture: tuple[PromptShare, ...] = ()
    curriculum: tuple[PromptShare, ...] = ()
    prompt_count: Count = 1_000
    hint_tokens: int = Field(default=0, ge=0)
    hint_annealing: Literal["linear", "none"] = "linear"
    group_size: int = Field(default=8, ge=2, le=1024)
    sampler: Literal["vllm", "torch"] = "vllm"
    temperature: float = Field(default=1.0, gt=0, le=10)
    optimiser: AdamW
    seed: Seed

    if TYPE_CHECKING:  # a field of some kinds, a property of others

        @property
        def rewards(self) -> tuple[Reward, ...]:
            """Rewards whose weighted sum is the reward of a completion."""
            ...

        @property
        def prompts_per_step(self) -> int:
            """Prompts of a step; a group is drawn for each."""
            ...

    @model_validator(mode="after")
    def _prompts(self, info: ValidationInfo) -> Self:
        task = task_to_fit(self, info)
        if not task:
            return self
        if not task.cells(self.prompt_role):
            filled = ", ".join(dict.fromkeys(role for role, _ in task.roles()))
            raise ValueError(f"prompt_role={self.prompt_role!r} has no cells in the task {task.label}; use {filled}")
        if self.mixture or self.curriculum:
            self._require_mixture(task)
        if self.hint_tokens:
            self._require_rest(task)
        return self

    def _require_rest(self, task: Task) -> None:
        """Raise ValueError if a hint would be a whole completion."""
        shortest = min(task.completion_tokens(cell) for cell in self.cell_shares.cells)
        if self.hint_tokens >= shortest:
            raise ValueError(
                f"hint_tokens={self.hint_tokens} should be at most {shortest - 1}, which leaves something to write of "
                f"completions of {shortest} tokens, the shortest of its prompts"
            )

    def _require_mixture(self, task: Task) -> None:
        """Raise ValueError on an unknown name, on a mixture without ``prompt_role``, and on too few prompts."""
        shares, asked = self.cell_shares, task.cells(self.prompt_role)
        if not any(shares.last_K[i] for i, cell in enumerate(shares.cells) if cell in asked):
            raise ValueError(
                f"mixture={_text(self.mixture)} has no cell of prompt_role={self.prompt_role!r}; add one of "
                f"{', '.join(asked)} (curriculum says what comes before them)"
            )
        if left_out := shares.without_prompts(self.prompt_count):
            raise ValueError(
                f"prompt_count={self.prompt_count} leaves the cell {left_out[0]} of {self.prompts_label} without a "
                "prompt; raise it"
            )

    @property
    def cell_shares(self) -> CellShares:
        """Shares of cells among the prompts of its steps."""
        last = self.mixture or (PromptShare(kind=self.prompt_role),)
        return CellShares.of(self.root.task, self.curriculum or last, last)

    def hint_at(self, step: int) -> int:
        """Return how many tokens of the gold completion are given in a step, which is counted from 0."""
        if self.hint_annealing == "none":
            return self.hint_tokens
        return self.hint_tokens - step * (self.hint_tokens + 1) // self.steps

    @property
    def prompt_roles(self) -> tuple[str, ...]:
        """Roles of the cells that prompts are drawn from."""
        return tuple(dict.fromkeys(role for role, cell in self.root.task.roles() if cell in self.cell_shares.cells))

    @property
    def prompts_label(self) -> str:
        """Its prompts in a label: ``ood``; ``ood-in-id+ood`` for a mixture, ``ood-from-id`` for a curriculum that
        starts with ID prompts, ``ood-hint3`` for hints of three tokens."""
        parts = {"in-": _text(self.mixture), "from-": _text(self.curriculum), "hint": self.hint_tokens}
        return "-".join([self.prompt_role, *(f"{name}{value}" for name, value in parts.items() if value)])

    @property
    def models(self) -> tuple[Stage, ...]:
        """Stages whose models its learner loads: the policy's, then those of models that are not trained."""
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
    def learns_from_truncated(self) -> bool:
        """True if completions that were cut off before they ended are learnt from."""
        return True

    @property
    def resamples(self) -> bool:
        """True if groups whose members all have the same reward are drawn again."""
        return False

    @property
    def completions(self) -> int:
        """Completions drawn in all."""
        return self.steps * self.prompts_per_step * self.group_size


def _text(mixture: Sequence[PromptShare]) -> str:
    """Return a mixture in a word: ``id+0.5ood``."""
    return "+".join(part.label for part in mixture)
