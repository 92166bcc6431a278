"""Surroundings of all tests: one core, no network, the same hypothesis examples every time, and tiny stages."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from rayexp.models import factory
from rayexp.tasks.strings import StringTask
from rayexp.tasks.strings.symbols import VOCABULARY
from tests.fixtures.factories import MICRO, TinyChain, tiny_chain

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


#: Modules with tests of a minute or two: begun last, they would be waited for by one of two cores.
LONGEST = ("test_wheel.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture
def chain() -> TinyChain:
    return tiny_chain(StringTask(axis="composition"))


@pytest.fixture
def model():
    """Return a decoder of some 14,000 random weights."""
    return factory.build(MICRO, VOCABULARY, seed=1)
