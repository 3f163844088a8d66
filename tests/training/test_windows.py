"""Where windows lie, and how they are weighted."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.training.windows import OVERLAP, Shape, Windows, part

sides = st.integers(8, 24)


@st.composite
def windows(draw: st.DrawFn) -> Windows:
    patch = draw(st.tuples(sides, sides, sides))
    x, y, z = (side + draw(st.integers(0, 40)) for side in patch)
    return Windows((x, y, z), patch)


@settings(max_examples=40)
@given(of=windows())
def test_weights_sum_to_one_at_every_voxel(of: Windows) -> None:
    total = np.zeros(of.shape)
    count = 0
    for corner, (x, y, z) in of.blended():
        total[part(corner, of.patch)] += x[:, None, None] * y[:, None] * z
        count += 1
    assert count == len(of)
    np.testing.assert_allclose(total, 1, atol=1e-5)


@settings(max_examples=40)
@given(of=windows())
def test_windows_reach_from_end_to_end_and_overlap(of: Windows) -> None:
    for axis in range(3):
        starts, side = of.starts(axis), of.patch[axis]
        assert starts[0] == 0 and starts[-1] + side == of.shape[axis]
        steps = np.diff(starts)
        assert (steps <= int(side * (1 - OVERLAP)) + 1).all()
    assert of.opposite() == ((0, 0, 0), tuple(of.starts(axis)[-1] for axis in range(3)))


def test_a_windows_middle_weighs_most() -> None:
    shape: Shape = (24, 8, 8)
    (_, (first, _, _)), _ = list(Windows(shape, (16, 8, 8)).blended())
    assert first[0] == 1 and np.all(np.diff(first[8:]) < 0) and first[15] < 0.2
