"""A stretch of a matrix laid out flat, as rectangles of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.policy.optimizer_shards import rectangles


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), ends=st.tuples(st.integers(0, 81), st.integers(0, 81)))
def test_rectangles_hold_the_values_of_the_stretch_in_their_order(
    rows: int, columns: int, ends: tuple[int, int]
) -> None:
    begin, end = (min(place, rows * columns) for place in ends)
    matrix = np.arange(rows * columns).reshape(rows, columns)
    found = [matrix[r : r + height, c : c + width].ravel() for r, c, height, width in rectangles(begin, end, columns)]
    assert [value for values in found for value in values] == list(range(begin, end))
    assert len(found) <= 3
