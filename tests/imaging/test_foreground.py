from __future__ import annotations

import numpy as np
import pytest

from fedseg.imaging.foreground import find_foreground, with_near_background, without_specks
from tests.conftest import tiny_head


def test_foreground_kinds() -> None:
    image, labels = tiny_head((30, 30, 30))
    shifted = find_foreground((image - 1000).astype(np.float32))
    assert shifted.constant
    assert shifted.background == pytest.approx(-1000)
    assert np.array_equal(shifted.mask((image - 1000).astype(np.float32)), labels > 0)
    noisy = (image + np.abs(np.random.default_rng(0).normal(0, 60, image.shape))).astype(np.float32)
    assert not find_foreground(noisy).constant
    assert (find_foreground(noisy).mask(noisy) == (labels > 0)).mean() > 0.9


def test_specks_are_what_has_fewer_than_six_neighbours() -> None:
    mask = np.zeros((9, 9, 9), np.bool_)
    mask[0, 0, 0] = mask[8, 8, 4:] = True
    mask[2:4, 2:4, 2:4] = True
    expected = mask.copy()
    expected[0, 0, 0] = expected[8, 8, 4:] = False
    np.testing.assert_array_equal(without_specks(mask), expected)
    six = np.zeros((5, 5, 5), np.bool_)
    six[1:3, 1:3, 1:3] = True
    six[1, 1, 1] = False
    assert without_specks(six).sum() == 7
    six[2, 2, 2] = False
    assert not without_specks(six).any()


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_a_background_far_below_the_tissue_is_lifted_near_to_it(scale: float) -> None:
    image, labels = tiny_head((30, 30, 30))
    scan = np.where(labels > 0, image * np.float32(scale), np.float32(-1000)).astype(np.float32)
    low, high = np.percentile(scan[labels > 0], (0.5, 99.5))
    near = with_near_background(scan)
    np.testing.assert_array_equal(near[labels > 0], scan[labels > 0])
    assert np.unique(near[labels == 0]) == pytest.approx([low - (high - low) / 4], abs=1e-3)


@pytest.mark.parametrize("background", [0.0, 1e-8, -100.0])
def test_a_background_of_zero_or_near_the_tissue_stays(background: float) -> None:
    image, labels = tiny_head((30, 30, 30))
    tissue = image + 5000 if background == 0 else image - 300
    scan = np.where(labels > 0, tissue, np.float32(background)).astype(np.float32)
    assert with_near_background(scan) is scan


def test_noise_below_zero_is_no_constant_background() -> None:
    scan = np.random.default_rng(0).normal(-500, 40, (20, 20, 20)).astype(np.float32)
    assert with_near_background(scan) is scan
