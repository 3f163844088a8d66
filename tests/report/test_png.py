from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedseg.report.png import encode_grey, encode_indexed, encode_rgb
from tests.report.brains import decode

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))))
def test_colours_as_others_read_them(picture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode(encode_rgb(picture)), picture)


@given(hnp.arrays(np.uint8, SIDES))
def test_grey_as_others_read_it(picture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode(encode_grey(picture)), picture)


@pytest.mark.parametrize("colours", [1, 2, 3, 8, 15, 16, 255])
@given(seed=st.integers(0, 100), sides=SIDES)
def test_classes_as_others_read_them(colours: int, seed: int, sides: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    classes = random.integers(0, colours + 1, sides, dtype=np.uint8)
    palette = [(i, 255 - i, (7 * i) % 256) for i in range(colours)]
    expected = np.array([(0, 0, 0, 0), *((*colour, 255) for colour in palette)])[classes]
    np.testing.assert_array_equal(decode(encode_indexed(classes, palette)), expected)


def test_a_smooth_picture_is_smaller_with_its_filter() -> None:
    slope = np.add.outer(np.arange(100), 2 * np.arange(100)).astype(np.uint8)
    assert len(encode_grey(slope)) < 500
