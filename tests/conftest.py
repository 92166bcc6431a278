"""What all tests share: one core, no network, the same hypothesis examples every time, and tiny stages."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from rayexp.models import decoder as decoders
from rayexp.spec import GRPO, SFT, AdamW, Decoder, Evaluate, Pretrain, Stage
from rayexp.tasks.strings import World

torch.set_num_threads(1)
settings.register_profile(
    "rayexp",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("rayexp")

OPTIMISER = AdamW(learning_rate=3e-3, warmup_steps=2, weight_decay=0.01)
MICRO = Decoder(layers=1, width=32, ff_width=64, heads=1, kv_heads=1, context_tokens=256)


def tiny_chain(world: World, decoder: Decoder = MICRO) -> dict[str, Stage]:
    """A chain of tiny stages, by kind; the measurement is of the GRPO stage."""
    pretrain = Pretrain(
        world=world, decoder=decoder, ood_ratio=0.1, samples=640, batch_samples=32, optimiser=OPTIMISER, seed=0
    )
    sft = SFT(init=pretrain, samples=64, batch_samples=32, optimiser=OPTIMISER, seed=0)
    grpo = GRPO(init=sft, prompts="ood", kl_beta=0.1, optimiser=OPTIMISER, steps=3, seed=0, sampler="torch")
    return {"pretrain": pretrain, "sft": sft, "grpo": grpo, "evaluate": Evaluate(init=grpo)}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture
def chain() -> dict[str, Stage]:
    return tiny_chain(World("composition"))


@pytest.fixture
def model():
    """A decoder of some 14,000 random weights."""
    return decoders.build(MICRO, seed=1)
