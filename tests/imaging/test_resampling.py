from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.imaging.resampling import apply, box, centres, grid_size, weights

sizes = st.integers(2, 40)
spacings = st.floats(0.3, 4.0)


@given(sizes, spacings, spacings)
def test_the_new_grid_covers_the_old_one_and_hardly_more(voxels: int, spacing: float, target: float) -> None:
    size = grid_size(voxels, spacing, target)
    assert (size + 1e-3 + 1e-9) * target >= voxels * spacing
    assert size == 1 or (size - 1) * target < voxels * spacing


@given(sizes, sizes, st.floats(0.2, 5.0))
def test_positions_are_symmetric_and_go_back(first: int, second: int, step: float) -> None:
    there = centres(first, step, second)
    assert np.allclose(there, (second - 1) - there[::-1])
    back = np.interp(there, np.arange(-99, 140), (np.arange(-99, 140) - (second - 1) / 2) / step + (first - 1) / 2)
    assert np.allclose(back, np.arange(first), atol=1e-6) or np.abs(there).max() > 99


@given(sizes, st.floats(0.2, 5.0))
def test_weights_sum_to_one_and_keep_constants(voxels: int, step: float) -> None:
    matrix = weights(centres(17, step, voxels), step, voxels)
    assert matrix.min() >= 0
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-6)


def test_interpolates_a_line_exactly_between_the_ends() -> None:
    positions = np.array([0.0, 0.25, 3.5, 8.9])
    assert np.allclose(weights(positions, 0.5, 10) @ np.arange(10, dtype=np.float32), positions, atol=1e-6)


def test_equal_grids_change_nothing() -> None:
    matrix = weights(centres(9, 1.0, 9), 1.0, 9)
    volume = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    assert np.array_equal(apply((matrix, matrix, matrix), volume), volume)


def test_apply_is_the_threefold_product() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(4, 5, 6)).astype(np.float32)
    matrices = tuple(rng.normal(size=(rows, size)).astype(np.float32) for rows, size in ((3, 4), (9, 5), (2, 6)))
    expected = np.einsum("ai,bj,ck,ijk->abc", *matrices, volume)
    got = apply((matrices[0], matrices[1], matrices[2]), volume)
    assert got.shape == (3, 9, 2)
    assert np.allclose(got, expected, atol=1e-5)


def test_downsampling_is_anti_aliased() -> None:
    stripes = np.tile([0.0, 1.0], 20).astype(np.float32)
    assert weights(centres(10, 4.0, 40), 4.0, 40)[1:-1] @ stripes == pytest.approx(0.5, abs=0.05)


def test_box() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[4:6, 0, 9] = True
    assert box(mask, (1, 2, 3)) == (slice(3, 7), slice(0, 3), slice(6, 10))
    assert box(np.zeros((2, 3, 4), bool), (1, 1, 1)) == (slice(0, 2), slice(0, 3), slice(0, 4))
