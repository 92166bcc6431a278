"""The exact comparison of rows, including lists in them, in the campaign of faults."""

import numpy as np
import pytest

from tests.chaos.campaign import exact


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array([3.0, 1.0]), np.array([np.nextafter(3.0, 4), 1.0])),
        (np.arange(5000.0), np.arange(5000.0) + (np.arange(5000) == 2500)),
        (1.0, np.nextafter(1.0, 2)),
        (None, float("nan")),
    ],
)
def test_what_differs_in_the_last_bit_has_another_text(one, other):
    assert exact(one) != exact(other)


def test_what_is_equal_has_one_text():
    assert exact(float("nan")) == exact(float("nan"))
    assert exact(np.array([1.0, 2.0])) == exact(np.array([1.0, 2.0]))
