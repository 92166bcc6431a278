"""The part that studies share: the chain pretrain - SFT - GRPO, over a grid of OOD ratios, betas and seeds."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayexp.models.config import Decoder
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain, Stage
from rayexp.studies.presets import Budget
from rayexp.tasks import Task
from rayexp.tasks.strings import StringTask


@dataclass(frozen=True)
class Grid:
    """The values a study runs through, and the variant of the strings it is about (see ``StringTask``)."""

    ood_ratios: Sequence[float]
    kl_betas: Sequence[float]
    seeds: Sequence[int]
    graph: str = "hidden"
    traversal: str = "uniform"
    completion_format: str = "answer"

    def task(self, axis: str) -> StringTask:
        """Return the variant of one axis."""
        variant = {"graph": self.graph, "traversal": self.traversal, "completion_format": self.completion_format}
        return StringTask.model_validate({"axis": axis, **variant})


def stage_chains(
    task: Task,
    budget: Budget,
    grid: Grid,
    prompt_roles: Sequence[str],
    decoder: Decoder | None = None,
    phases: Sequence[Mapping[str, Any]] = ({},),
    **grpo: Any,
) -> list[Stage]:
    """Pretraining, SFT, then GRPO for every role of prompts and every beta; everything measured.

    Stages that two chains share appear once in a plan, because they are equal. grpo: settings of every GRPO stage that
    are not to have their defaults, such as ``advantage="mean_only"``. phases: such settings of each of several GRPO
    stages in a row, each of which goes on from the one before, as in ``[{"rewards": (LettersSum(),)}, {"reference":
    "root"}]``. Raises ValidationError on a setting that a stage can't have.
    """
    decoder = decoder or with_context_for(budget.decoder, task)
    stages: list[Stage] = []
    for seed in grid.seeds:
        for ratio in grid.ood_ratios:
            base = Pretrain(
                task=task,
                decoder=decoder,
                ood_ratio=ratio,
                samples=budget.pretrain_samples,
                batch_samples=budget.pretrain_batch,
                optimiser=budget.pretrain,
                seed=seed,
            )
            tuned = SFT(init=base, samples=budget.sft_samples, optimiser=budget.sft, seed=seed)
            stages += with_evaluations([base, tuned], budget)
            for role, beta in itertools.product(prompt_roles, grid.kl_betas):
                settings = {
                    "prompt_role": role,
                    "kl_beta": beta,
                    "steps": budget.grpo_steps,
                    "prompts_per_step": budget.grpo_prompts_per_step,
                    "group_size": budget.grpo_group_size,
                    "optimiser": budget.grpo,
                    "seed": seed,
                    **grpo,
                }
                stages += with_evaluations(_in_a_row(tuned, settings, phases), budget)
    return stages


def _in_a_row(init: Stage, settings: Mapping[str, Any], phases: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """Return a GRPO stage for each phase, which starts from the model of the one before."""
    stages: list[Stage] = []
    for phase in phases:
        stages.append(GRPO.model_validate({**settings, **phase, "init": stages[-1] if stages else init}))
    return stages


def with_evaluations(stages: Sequence[Stage], budget: Budget) -> list[Stage]:
    """Each stage followed by its measurement."""
    out: list[Stage] = []
    for stage in stages:
        out += [stage, Evaluate.model_validate({"init": stage, "prompts_per_cell": budget.prompts_per_cell})]
    return out


def with_context_for(decoder: Decoder, task: Task) -> Decoder:
    """The decoder with a context long enough for the task: a multiple of 64 tokens."""
    tokens = -(-task.max_tokens // 64) * 64
    return decoder.model_copy(update={"context_tokens": max(decoder.context_tokens, tokens)})
