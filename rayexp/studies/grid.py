"""The common part of studies: the chain pretrain - SFT - GRPO, over a grid of OOD ratios, betas and seeds."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayexp.formatting import number
from rayexp.models.config import Decoder, PretrainedDecoder
from rayexp.stages import GRPO, SFT, Evaluate, Pretrain, Pretrained, Stage
from rayexp.studies.presets import Budget
from rayexp.tasks import Task
from rayexp.tasks.strings import StringTask


@dataclass(frozen=True)
class Grid:
    """The values that a study combines, and its variant of the strings (see ``StringTask``)."""

    ood_ratios: Sequence[float]
    kl_betas: Sequence[float]
    seeds: Sequence[int]
    graph: str = "hidden"
    traversal: str = "uniform"
    completion_format: str = "answer"

    @property
    def kl_beta(self) -> float:
        """Return the first beta above 0, for studies with one beta. Raises ValueError if there is none."""
        if beta := next((beta for beta in self.kl_betas if beta > 0), None):
            return beta
        given = ", ".join(map(number, self.kl_betas))
        raise ValueError(f"kl_betas={given} should have one above 0, because the control of the study has a KL")

    @property
    def variant(self) -> dict[str, str]:
        """Return the settings of the strings."""
        return {"graph": self.graph, "traversal": self.traversal, "completion_format": self.completion_format}

    def task(self, axis: str) -> StringTask:
        """Return the task of one axis in this variant."""
        return StringTask.model_validate({"axis": axis, **self.variant})

    def require_no_strings(self) -> None:
        """Raise ValueError unless the variant is the default. Studies without strings call it."""
        for name, value in self.variant.items():
            if value != (usual := StringTask.model_fields[name].default):
                raise ValueError(f"{name}={value!r} should be {usual!r}, because this study is not about strings")


def stage_chains(
    task: Task,
    budget: Budget,
    grid: Grid,
    prompt_roles: Sequence[str],
    decoder: Decoder | PretrainedDecoder | None = None,
    phases: Sequence[Mapping[str, Any]] = ({},),
    **grpo: Any,
) -> list[Stage]:
    """Return pretraining, SFT, and GRPO for every role of prompts and every beta, each followed by its measurement.

    Stages that two chains share appear once in a plan, because they are equal. grpo: settings of every GRPO stage that
    differ from the defaults, such as ``advantage="mean_only"``. phases: as for ``in_a_row``. Raises ValidationError on
    an invalid setting.
    """
    stages: list[Stage] = []
    for base in pretrained(task, budget, grid, decoder):
        tuned = fine_tuned(base, budget)
        stages += with_evaluations([base, tuned], budget)
        for role, beta in itertools.product(prompt_roles, grid.kl_betas):
            settings = {"prompt_role": role, "kl_beta": beta, **grpo}
            stages += with_evaluations(in_a_row(tuned, budget, phases, **settings), budget)
    return stages


def model_chains(
    task: Task, model: PretrainedDecoder, budget: Budget, grid: Grid, prompt_roles: Sequence[str], **grpo: Any
) -> list[Stage]:
    """Return a pretrained model, and GRPO for every seed, role of prompts and beta, each followed by its measurement.

    task: in the model's own tokens (``PretrainedDecoder.tokens``). grpo: as for ``stage_chains``. With such a model as
    its decoder, ``stage_chains`` first trains the model on a share of OOD samples.
    """
    base = Pretrained(task=task, decoder=model)
    ends = [
        reinforced(base, budget, prompt_role=role, kl_beta=beta, seed=seed, **grpo)
        for seed, role, beta in itertools.product(grid.seeds, prompt_roles, grid.kl_betas)
    ]
    return measured_chains(ends, budget)


def pretrained(
    task: Task, budget: Budget, grid: Grid, decoder: Decoder | PretrainedDecoder | None = None, **settings: Any
) -> list[Pretrain]:
    """Return a pretraining for every seed and OOD ratio. settings: those that differ from the budget's."""
    usual = {
        "task": task,
        "decoder": decoder or decoder_for(budget, task),
        "samples": budget.pretrain_samples,
        "batch_samples": budget.pretrain_batch,
        "optimiser": budget.pretrain,
    }
    return [
        Pretrain.model_validate({**usual, "ood_ratio": ratio, "seed": seed, **settings})
        for seed in grid.seeds
        for ratio in grid.ood_ratios
    ]


def fine_tuned(base: Stage, budget: Budget, **settings: Any) -> SFT:
    """Return SFT from a pretrained decoder. settings: those that differ from the budget's."""
    usual = {"samples": budget.sft_samples, "optimiser": budget.sft, "seed": base.chain_seed}
    return SFT.model_validate({"init": base, **usual, **settings})


def reinforced(init: Stage, budget: Budget, **settings: Any) -> GRPO:
    """Return GRPO from a model. settings: ``prompt_role`` and ``kl_beta``, and those that differ from the budget's."""
    usual = {
        "steps": budget.grpo_steps,
        "prompts_per_step": budget.grpo_prompts_per_step,
        "group_size": budget.grpo_group_size,
        "sampler": budget.sampler,
        "optimiser": budget.grpo,
        "seed": init.chain_seed,
    }
    return GRPO.model_validate({"init": init, **usual, **settings})


def in_a_row(init: Stage, budget: Budget, phases: Sequence[Mapping[str, Any]], **settings: Any) -> list[Stage]:
    """Return a GRPO stage for each phase. Each starts from the one before.

    phases: the settings of each phase beside the common ones, as in ``[{"rewards": (LettersSum(),)}, {"reference":
    "root"}]``.
    """
    stages: list[Stage] = []
    for phase in phases:
        stages.append(reinforced(stages[-1] if stages else init, budget, **{**settings, **phase}))
    return stages


def with_evaluations(stages: Sequence[Stage], budget: Budget) -> list[Stage]:
    """Return each stage, followed by its measurement."""
    out: list[Stage] = []
    for stage in stages:
        out += [stage, Evaluate.model_validate({"init": stage, "prompts_per_cell": budget.prompts_per_cell})]
    return out


def measured_chains(ends: Sequence[Stage], budget: Budget) -> list[Stage]:
    """Return the whole chains that end in these stages, with a measurement after each stage."""
    return [stage for end in ends for stage in with_evaluations(end.lineage, budget)]


def decoder_for(budget: Budget, task: Task, **settings: Any) -> Decoder:
    """Return the budget's decoder with a context that is long enough for the task, a multiple of 64 tokens. settings:
    those that differ from the budget's."""
    tokens = -(-task.max_tokens // 64) * 64
    usual = {**budget.decoder.model_dump(), "context_tokens": max(budget.decoder.context_tokens, tokens)}
    return Decoder.model_validate({**usual, **settings})
