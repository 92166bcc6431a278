"""What the studies share: the chain pretrain - SFT - GRPO, over a grid of OOD ratios, betas and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayexp.spec import GRPO, SFT, Decoder, Evaluate, Pretrain, Stage
from rayexp.studies.presets import Budget
from rayexp.tasks.strings import World


@dataclass(frozen=True)
class Grid:
    """The values a study runs through, and the variant of the world it runs in (see ``world.World``)."""

    ood_ratios: Sequence[float]
    kl_betas: Sequence[float]
    seeds: Sequence[int]
    graph: str = "hidden"
    traversal: str = "uniform"
    samples: str = "answer"

    def world(self, axis: str) -> World:
        """The variant of one axis."""
        return World(axis, self.graph, self.traversal, self.samples)


def stage_chains(
    world: World, budget: Budget, grid: Grid, prompts: Sequence[str], decoder: Decoder | None = None, **grpo: Any
) -> list[Stage]:
    """Pretraining, SFT, then GRPO for every arm of ``prompts`` and every beta; everything measured.

    Stages that two chains share appear once in a plan, because they are equal. grpo: settings of every GRPO stage that
    are not to have their defaults, such as ``advantage="mean_only"``. Raises ValidationError on one it can't have.
    """
    decoder = decoder or with_context_for(budget.decoder, world)
    stages: list[Stage] = []
    for seed in grid.seeds:
        for ratio in grid.ood_ratios:
            base = Pretrain(
                world=world,
                decoder=decoder,
                ood_ratio=ratio,
                samples=budget.pretrain_samples,
                batch_samples=budget.pretrain_batch,
                optimiser=budget.pretrain,
                seed=seed,
            )
            tuned = SFT(init=base, samples=budget.sft_samples, optimiser=budget.sft, seed=seed)
            reinforced = [
                GRPO.model_validate(
                    {
                        "init": tuned,
                        "prompts": arm,
                        "kl_beta": beta,
                        "steps": budget.grpo_steps,
                        "prompts_per_step": budget.grpo_prompts_per_step,
                        "group_size": budget.grpo_group_size,
                        "optimiser": budget.grpo,
                        "seed": seed,
                        **grpo,
                    }
                )
                for arm in prompts
                for beta in grid.kl_betas
            ]
            stages += with_evaluations([base, tuned, *reinforced], budget)
    return stages


def with_evaluations(stages: Sequence[Stage], budget: Budget) -> list[Stage]:
    """Each stage followed by its measurement."""
    out: list[Stage] = []
    for stage in stages:
        out += [stage, Evaluate.model_validate({"init": stage, "prompts_per_cell": budget.prompts_per_cell})]
    return out


def with_context_for(decoder: Decoder, world: World) -> Decoder:
    """The decoder with a context long enough for the world: a multiple of 64 tokens."""
    tokens = -(-world.max_tokens // 64) * 64
    return decoder.model_copy(update={"context_tokens": max(decoder.context_tokens, tokens)})
