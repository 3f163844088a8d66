from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from fedseg.imaging.fingerprint import MARGIN, Fingerprint, features
from fedseg.imaging.generation import draw_recipe, generate
from fedseg.imaging.label_maps import made_up_labels
from fedseg.imaging.made_up_fingerprint import T2_MADE_UP, images
from fedseg.labels import BRAIN_MASK, FETA

SET = [{"noise": 0.1, "fluid": 1.0}, {"noise": 0.2, "fluid": 0.8}]


def test_a_fingerprint_is_the_range_of_what_all_images_have() -> None:
    known = Fingerprint.of([*SET, {"noise": 0.15, "fluid": 0.9, "skew": 0.1}], "somewhere", 1.0)
    assert known.ranges == {"noise": (0.1, 0.2), "fluid": (0.8, 1.0)}
    assert (known.volumes, known.source, known.spacing_mm) == (3, "somewhere", 1.0)
    with pytest.raises(ValueError, match="no image"):
        Fingerprint.of([], "nowhere", 1.0)
    with pytest.raises(ValueError, match="'noise' ends before it begins"):
        Fingerprint("x", 1, 1.0, {"noise": (0.2, 0.1)})


def test_only_the_side_that_counts_is_counted() -> None:
    known = Fingerprint.of(SET, "somewhere", 1.0)
    assert known.distance({"noise": 0.0, "fluid": 9.0}) == {"noise": 0.0, "fluid": 0.0}
    assert known.distance({"noise": 0.3, "fluid": 0.7}) == pytest.approx({"noise": 1.0, "fluid": 0.5})
    assert known.unlike({"noise": 0.3, "fluid": 0.7}) == ["noisier", "with darker fluid against white matter"]
    assert known.unlike({"noise": 0.2 + 0.09 * MARGIN, "fluid": 0.9}) == []


@given(st.lists(st.fixed_dictionaries({"noise": st.floats(0, 5), "skew": st.floats(-1, 1)}), min_size=1, max_size=9))
def test_what_it_was_made_of_is_never_unlike_it(images: list[dict[str, float]]) -> None:
    known = Fingerprint.of(images, "somewhere", 1.0)
    # Ranges are rounded to 4 digits.
    wide = Fingerprint("x", 1, 1.0, {name: (low - 1e-4, high + 1e-4) for name, (low, high) in known.ranges.items()})
    assert all(wide.unlike(image) == [] for image in images)


def test_features_that_a_later_version_knows_do_no_harm() -> None:
    known = Fingerprint("x", 1, 1.0, {"later": (0.0, 1.0), "noise": (0.0, 1.0)})
    assert known.distance({"noise": 0.5, "skew": 3.0}) == {"noise": 0.0}
    assert known.uncompared({"noise": 0.5, "skew": 3.0}) == [
        *("sharpness", "shading", "share of bright tissue", "fluid against white matter"),
        *("cortex against white matter", "later"),
    ]
    assert T2_MADE_UP.uncompared(dict.fromkeys(T2_MADE_UP.ranges, 0.0)) == []


def test_features_tell_what_was_done_to_an_image() -> None:
    labels = made_up_labels(1, 0, 1.6)
    rng = np.random.default_rng(3)
    recipe = draw_recipe(rng)
    image, truth = generate(labels, 1.6, recipe)
    as_is = features(image, truth, 1.6, FETA)
    noisy = image + rng.normal(0, 1, image.shape).astype(np.float32)
    assert features(noisy, truth, 1.6, FETA)["noise"] > as_is["noise"] + 0.3
    blurred = ndimage.gaussian_filter(image, 2.0)
    assert features(blurred, truth, 1.6, FETA)["sharpness"] < 0.8 * as_is["sharpness"]
    slope = np.linspace(-3, 3, image.shape[0], dtype=np.float32)[:, None, None]
    assert features(image + slope, truth, 1.6, FETA)["shading"] > as_is["shading"] + 0.2
    inverted = features(-image, truth, 1.6, FETA)
    assert {name: inverted[name] for name in ("skew", "fluid", "cortex")} == pytest.approx(
        {name: -as_is[name] for name in ("skew", "fluid", "cortex")}, abs=1e-4
    )
    other_units = features(100 * image + 7, truth, 1.6, FETA)
    assert other_units == pytest.approx(as_is, rel=1e-2, abs=1e-3)


def test_noise_is_measured_in_voxels() -> None:
    inside = np.zeros((40, 40, 40), np.uint8)
    inside[4:-4, 4:-4, 4:-4] = 1
    noise = np.random.default_rng(0).normal(0, 1, inside.shape).astype(np.float32)
    assert features(noise, inside, 1.0, BRAIN_MASK)["noise"] == pytest.approx(1.0, abs=0.1)


def test_masks_and_missing_tissues_have_fewer_features() -> None:
    inside = np.zeros((40, 40, 40), np.uint8)
    inside[4:-4, 4:-4, 4:-4] = 1
    noise = np.random.default_rng(0).normal(0, 1, inside.shape).astype(np.float32)
    assert set(features(noise, inside, 1.0, BRAIN_MASK)) == {"noise", "sharpness", "shading", "skew"}
    assert set(features(noise, inside, 1.0, FETA)) == {"noise", "sharpness", "shading", "skew"}
    assert features(noise, np.zeros_like(inside), 1.0, FETA) == {}


# Where this fails, the made-up brains or the features have changed: make `T2_MADE_UP` again from all of `images`.
def test_the_constant_is_what_its_images_give() -> None:
    first = next(images())
    expected = {"noise": 0.0908, "sharpness": 1.0655, "shading": 0.1952, "skew": 0.332, "fluid": 1.1325}
    assert first == pytest.approx(expected | {"cortex": 0.3325}, abs=2e-3)
    assert T2_MADE_UP.distance(first) == dict.fromkeys(T2_MADE_UP.distance(first), 0.0)
    assert len(T2_MADE_UP.distance(first)) == len(first) == len(T2_MADE_UP.ranges)
