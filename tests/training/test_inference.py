"""Whole volumes through a trained network: sizes, windows, one pass, memory, errors."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference

from fedseg.errors import DataError, ModelError
from fedseg.training import inference, memory
from fedseg.training.inference import (
    Predictor,
    load_segmenter,
    mean_uncertainty,
    mirrored,
    segment,
    uncertainty,
)
from fedseg.training.memory import MARGIN, available_bytes, predicted_bytes
from fedseg.training.network import PRESETS, SegmentationNet, architecture, arrays, build_network
from fedseg.training.windows import SIGMA

PATCH = (16, 16, 16)
MODEL = load_segmenter(arrays(build_network("small", 3, 1)), architecture("small", 3))
sides = st.integers(3, 21)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def seen_by(predictor: Predictor, image: np.ndarray) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    hook = predictor._network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    predictor(image)
    hook.remove()
    return seen


def monai(image: np.ndarray) -> np.ndarray:
    # With our weights: MONAI's bell has half the width and is cut off at 1e-3.
    bell = torch.exp(-0.5 * ((torch.arange(16) - 7.5) / (16 * SIGMA)) ** 2)
    weights = bell[:, None, None] * bell[:, None] * bell
    with torch.no_grad():
        batch = torch.from_numpy(image)[None, None]
        logits = sliding_window_inference(batch, PATCH, 1, MODEL, overlap=0.25, mode="gaussian", roi_weight_map=weights)
        assert isinstance(logits, torch.Tensor)
        return torch.softmax(logits[0], dim=0).numpy()


@settings(max_examples=10)
@given(shape=st.tuples(sides, sides, sides), one_pass=st.booleans())
def test_probabilities_lie_on_the_image_grid_and_sum_to_one(shape: tuple[int, int, int], one_pass: bool) -> None:
    result = Predictor(MODEL, PATCH, one_pass=one_pass)(noise(shape))
    assert result.shape == (3, *shape) and result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


def test_padding_is_cut_where_it_was_added() -> None:
    image = noise((14, 16, 16))
    padded = np.pad(image, [(1, 1), (0, 0), (0, 0)], constant_values=float(image.min()))
    whole = segment(MODEL, padded, PATCH, precision="float32")
    np.testing.assert_allclose(segment(MODEL, image, PATCH, precision="float32"), whole[:, 1:-1], atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 20, 16), (5, 20, 9)])
def test_the_network_only_sees_windows_of_the_patch_unless_it_is_told_otherwise(shape: tuple[int, int, int]) -> None:
    assert set(seen_by(Predictor(MODEL, PATCH), noise(shape))) == {PATCH}


@pytest.mark.parametrize("shape", [(27, 16, 20), (28, 28, 28)])
def test_windows_give_what_monai_gives(shape: tuple[int, int, int]) -> None:
    image = noise(shape)
    np.testing.assert_allclose(segment(MODEL, image, PATCH, precision="float32"), monai(image), atol=2e-4)


def test_three_windows_along_an_axis_give_what_monai_gives_where_they_lie_alike() -> None:
    image = noise((16, 16, 40))
    np.testing.assert_allclose(segment(MODEL, image, PATCH, precision="float32"), monai(image), atol=2e-4)


def test_a_volume_of_one_patch_gets_the_networks_own_softmax() -> None:
    image = noise(PATCH)
    with torch.no_grad():
        expected = torch.softmax(MODEL(torch.from_numpy(image)[None, None])[0], dim=0).numpy()
    for one_pass in (False, True):
        predictor = Predictor(MODEL, PATCH, precision="float32", one_pass=one_pass)
        np.testing.assert_allclose(predictor(image), expected, atol=1e-5)


def test_a_window_of_nothing_but_background_is_not_run_and_is_background() -> None:
    image = np.full((16, 16, 40), -3, np.float32)
    image[:, :, :10] = np.abs(noise((16, 16, 10)))
    predictor = Predictor(MODEL, PATCH, precision="float32")
    assert len(seen_by(predictor, image)) == 1
    assert predictor(image)[0, :, :, 30:].min() > 0.999


def test_one_pass_has_the_statistics_of_windows_and_sees_the_volume_once() -> None:
    image = noise((32, 32, 32))
    predictor = Predictor(MODEL, PATCH, precision="float32", one_pass=True)
    assert seen_by(predictor, image) == [PATCH, PATCH, (32, 32, 32)]
    assert seen_by(predictor, noise(PATCH)) == [PATCH], "the next volume has its own statistics again"


def test_one_pass_is_taken_only_where_asked_for_cheaper_and_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, not_asked = Predictor(MODEL, PATCH, one_pass=True), Predictor(MODEL, PATCH)
    assert not_asked.way((32, 32, 32)).passes == "windows"
    assert asked.way((12, 16, 16)).passes == "patch"
    assert asked.way((18, 16, 16)).passes == "windows"
    way = asked.way((30, 32, 32))
    assert (way.passes, way.windows, way.padded) == ("whole", 2, (32, 32, 32))
    assert way.needs_bytes == asked.way((32, 32, 32)).needs_bytes < way.free_bytes
    for free, passes in ((MARGIN * way.needs_bytes + 1, "whole"), (MARGIN * way.needs_bytes - 1, "windows")):
        monkeypatch.setattr(inference, "available_bytes", lambda _, free=free: int(free))
        assert asked.way((30, 32, 32)).passes == passes


def test_bf16_stays_near_float32() -> None:
    image = noise((16, 24, 16))
    exact, rounded = (segment(MODEL, image, PATCH, precision=precision) for precision in ("float32", "bf16"))
    assert 0 < np.abs(exact - rounded).mean() < 0.02


def test_a_mirror_image_has_the_mirrored_result() -> None:
    image, predictor = noise((20, 16, 16)), Predictor(MODEL, PATCH, precision="float32")
    plain = predictor(image)
    there = mirrored(predictor, image)
    np.testing.assert_allclose(mirrored(predictor, np.ascontiguousarray(image[::-1])), there[:, ::-1], atol=1e-6)
    assert np.abs(there - plain).max() > 1e-4
    np.testing.assert_allclose(there.sum(0), 1, atol=1e-5)


def test_the_trainers_weights_are_shared_and_untouched() -> None:
    model = build_network("small", 3, 2).train()
    predictor, image = Predictor(model, PATCH, precision="float32"), noise((24, 16, 16))
    before = predictor(image)
    assert model.training
    with torch.no_grad():
        next(iter(model.head.parameters())).mul_(2)
    assert np.abs(predictor(image) - before).max() > 1e-3
    fresh = load_segmenter(arrays(model), architecture("small", 3))
    np.testing.assert_array_equal(segment(fresh, image, PATCH, precision="float32"), predictor(image))


def test_uncertainty_is_none_where_sure_and_all_where_classes_are_alike() -> None:
    chances = np.zeros((4, 1, 1, 3), np.float32)
    chances[2, ..., 0] = 1
    chances[:, ..., 1] = 0.25
    chances[:2, ..., 2] = 0.5
    np.testing.assert_allclose(uncertainty(chances)[0, 0], [0, 1, 0.5], atol=1e-6)
    assert mean_uncertainty(chances[..., :1]) == pytest.approx(0, abs=1e-6)
    assert mean_uncertainty(chances[..., 2:]) == 0, "the background does not count"


def test_a_segmenter_is_in_evaluation_mode_and_refuses_foreign_weights() -> None:
    assert isinstance(MODEL, SegmentationNet) and not MODEL.training
    with pytest.raises(ModelError, match="the network wants"):
        load_segmenter(arrays(build_network("small", 3, 1)), architecture("small", 5))


@pytest.mark.parametrize("image", [noise((4, 4)), noise((0, 4, 4)), np.full((4, 4, 4), np.nan, np.float32)])
def test_images_that_cannot_be_segmented_are_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="a finite 3D volume is needed"):
        segment(MODEL, image, PATCH)


@pytest.fixture
def _settled() -> Iterator[None]:
    """Freed memory is given back first, so that the peak is that of what comes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    yield


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


@pytest.mark.usefixtures("_settled")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_memory_is_predicted_within_a_factor_of_two(preset: str, precision: str) -> None:
    patch = (96, 96, 96)
    predictor, image = Predictor(build_network(preset, 8, 0), patch, precision=precision), noise(patch)
    before = _status("VmRSS")
    predictor(image)
    used = _status("VmHWM") - before
    assert 0.5 < used / predictor.way(patch).needs_bytes < 2


def test_free_memory_is_the_lesser_of_the_machines_and_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    cpu = torch.device("cpu")
    assert available_bytes(cpu) == 5000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu) == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert available_bytes(cpu) == 3000
    assert predicted_bytes("base", 8, PATCH, (32, 32, 32), bf16=True) > predicted_bytes(
        "base", 8, PATCH, PATCH, bf16=True
    )
