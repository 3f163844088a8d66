"""Whole volumes through a trained network: sizes, windows, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import DataError, ModelError
from fedseg.training.inference import load_segmenter, segment
from fedseg.training.network import SegmentationNet, architecture, arrays, build_network

PATCH = (16, 16, 16)
MODEL = load_segmenter(arrays(build_network("small", 3, 1)), architecture("small", 3))
sides = st.integers(3, 21)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(shape=st.tuples(sides, sides, sides))
def test_probabilities_lie_on_the_image_grid_and_sum_to_one(shape: tuple[int, int, int]) -> None:
    result = segment(MODEL, noise(shape), PATCH)
    assert result.shape == (3, *shape) and result.dtype == np.float32
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


def test_padding_is_cut_where_it_was_added() -> None:
    image = noise((14, 16, 16))
    padded = np.pad(image, [(1, 1), (0, 0), (0, 0)], constant_values=float(image.min()))
    whole = segment(MODEL, padded, PATCH, precision="float32")
    np.testing.assert_allclose(segment(MODEL, image, PATCH, precision="float32"), whole[:, 1:-1], atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 20, 16), (5, 20, 9)])
def test_the_network_only_sees_windows_of_the_patch(shape: tuple[int, int, int]) -> None:
    seen: list[tuple[int, ...]] = []
    hook = MODEL.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    try:
        result = segment(MODEL, noise(shape), PATCH)
    finally:
        hook.remove()
    assert set(seen) == {PATCH} and result.shape == (3, *shape)


def test_a_volume_of_one_patch_gets_the_networks_own_softmax() -> None:
    image = noise(PATCH)
    with torch.no_grad():
        expected = torch.softmax(MODEL(torch.from_numpy(image)[None, None])[0], dim=0).numpy()
    np.testing.assert_allclose(segment(MODEL, image, PATCH, precision="float32"), expected, atol=1e-5)


def test_bf16_stays_near_float32() -> None:
    image = noise((16, 24, 16))
    exact, rounded = (segment(MODEL, image, PATCH, precision=precision) for precision in ("float32", "bf16"))
    assert np.abs(exact - rounded).mean() < 0.02


def test_a_segmenter_is_in_evaluation_mode_and_refuses_foreign_weights() -> None:
    assert isinstance(MODEL, SegmentationNet) and not MODEL.training
    with pytest.raises(ModelError, match="the network wants"):
        load_segmenter(arrays(build_network("small", 3, 1)), architecture("small", 5))


@pytest.mark.parametrize("image", [noise((4, 4)), noise((0, 4, 4)), np.full((4, 4, 4), np.nan, np.float32)])
def test_images_that_cannot_be_segmented_are_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="a finite 3D volume is needed"):
        segment(MODEL, image, PATCH)
