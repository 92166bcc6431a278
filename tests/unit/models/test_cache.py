"""The padding of a cache's rows, which is small."""

from hypothesis import given
from hypothesis import strategies as st

from rayexp.models.cache import padded


@given(st.integers(1, 10_000))
def test_less_than_a_quarter_of_the_rows_that_are_read_is_waste(rows):
    assert rows <= padded(rows) < 1.25 * rows


def test_shapes_are_few():
    assert [padded(rows) for rows in (0, 1, 8, 9, 16, 17, 33, 65, 129, 512)] == [0, 1, 8, 10, 16, 20, 40, 80, 160, 512]
    assert len({padded(rows) for rows in range(1, 513)}) == 36
