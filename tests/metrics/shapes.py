"""Masks for the tests of metrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Mask = npt.NDArray[np.bool_]

SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 3.3])] * 3)


def cube(shape: tuple[int, int, int], first: tuple[int, int, int], size: int) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(slice(start, start + size) for start in first)] = True
    return mask


def ellipsoid(shape: tuple[int, int, int], centre: tuple[int, int, int], radii: tuple[int, int, int]) -> Mask:
    places = np.indices(shape)
    inside: Mask = sum(((places[axis] - centre[axis]) / radii[axis]) ** 2 for axis in range(3)) <= 1
    return inside


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two random masks of one small shape; either may be empty."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5))
    first, second = (draw(hnp.arrays(np.bool_, shape)) for _ in range(2))
    return first, second
