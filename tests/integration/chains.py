"""Small real stages."""

from typing import Any

from rayexp.presets import SCALES
from rayexp.spec import GRPO, SFT, Evaluate, Pretrain, Stage
from rayexp.store import Store
from rayexp.world import World

TOY = SCALES["toy"]


def pretrain(**changes) -> Pretrain:
    settings = {
        "world": World("composition"),
        "decoder": TOY.decoder,
        "ood_ratio": 0.25,
        "samples": 1_000,  # the last batch is smaller than the others
        "batch_samples": 128,
        "optimiser": TOY.pretrain,
        "seed": 0,
    }
    return Pretrain(**settings | changes)


def sft(init: Pretrain) -> SFT:
    return SFT(init=init, samples=100, optimiser=TOY.sft, seed=0)


def grpo(init: SFT, **changes) -> GRPO:
    settings = {
        "init": init,
        "prompts": "id",
        "kl_beta": 0.1,
        "steps": 4,
        "prompts_per_step": 8,
        "group_size": 4,
        "prompt_count": 20,
        "optimiser": TOY.grpo,
        "seed": 0,
    }
    return GRPO(**settings | changes)


def evaluate(init, **changes) -> Evaluate:
    return Evaluate(**{"init": init, "prompts_per_cell": 10} | changes)


def logged(store: Store, stage: Stage) -> Any:
    """The curves of a stage, but for those that are a speed: no two runs are equally fast."""
    curves = store.table(stage.id, "metrics.parquet").to_pandas()
    return curves[~curves.metric.str.endswith("tokens_per_s")].to_dict("list")
