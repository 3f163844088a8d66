"""Patch sampling: balanced, padded, reproducible, and the same variation of image and labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import DataError
from fedseg.training.augmentation import Look, draw_look, vary_intensity
from fedseg.training.patches import Draw, SubjectVolumes

PATCH = (16, 16, 16)
sides = st.integers(5, 24)


def volume(shape: tuple[int, int, int], seed: int = 0) -> Any:
    """Intensity 10 x label + position along x, so that a cut shows where it came from."""
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    image = (10 * labels + np.arange(shape[0])[:, None, None] / 100).astype(np.float32)
    return SimpleNamespace(image=image, labels=labels, geometry=None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=40)
@given(
    shape=st.tuples(sides, sides, sides),
    seed=st.integers(0, 1000),
    augment=st.sampled_from(["none", "light", "strong"]),
)
def test_every_patch_has_the_size_asked_for_and_only_known_labels(
    shape: tuple[int, int, int], seed: int, augment: str
) -> None:
    subject = SubjectVolumes([volume(shape)])
    image, labels = subject.cut(subject.draw(rng(seed), PATCH, augment=augment), PATCH)
    assert image.shape == labels.shape == PATCH
    assert image.dtype == np.float32 and labels.dtype == np.uint8
    assert labels.max() <= 3 and np.isfinite(image).all()


@settings(max_examples=40)
@given(shape=st.tuples(sides, sides, sides), seed=st.integers(0, 1000))
def test_without_variation_a_patch_is_the_volume_and_its_padding(shape: tuple[int, int, int], seed: int) -> None:
    source = volume(shape)
    subject = SubjectVolumes([source])
    draw = subject.draw(rng(seed), PATCH, augment="none")
    image, labels = subject.cut(draw, PATCH)
    padded_image = np.pad(source.image, 16, constant_values=source.image.min())
    padded_labels = np.pad(source.labels, 16)
    window = tuple(slice(c + 16, c + 32) for c in draw.corner)
    np.testing.assert_array_equal(labels, padded_labels[window])
    np.testing.assert_allclose(image, padded_image[window], atol=1e-5)
    whole = [s if s <= 16 else 16 for s in shape]
    inside = np.pad(np.ones(shape, bool), 16)[window]
    assert int(inside.sum()) == int(np.prod(whole))


def test_draws_favour_rare_tissues() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:30] = 1
    labels[36, 36, 36] = 2
    subject = SubjectVolumes([SimpleNamespace(image=labels.astype(np.float32), labels=labels)])
    generator = rng()
    held = [subject.cut(subject.draw(generator, (8, 8, 8), augment="none"), (8, 8, 8))[1] for _ in range(400)]
    share = sum(bool((patch == 2).any()) for patch in held) / len(held)
    assert 0.28 < share < 0.45


def test_all_volumes_of_a_subject_are_drawn() -> None:
    subject = SubjectVolumes([volume((20, 20, 20)), volume((24, 18, 16), seed=1)])
    generator = rng()
    assert {subject.draw(generator, PATCH, augment="strong").volume for _ in range(30)} == {0, 1}


def test_the_generator_decides_everything() -> None:
    subject = SubjectVolumes([volume((24, 20, 20))])
    first, second, other = (subject.draw(rng(seed), PATCH, augment="strong") for seed in (3, 3, 4))
    assert first == second != other
    np.testing.assert_array_equal(subject.cut(first, PATCH)[0], subject.cut(second, PATCH)[0])


def test_the_views_of_one_step_are_varied_each_by_itself() -> None:
    subject, generator = SubjectVolumes([volume((24, 20, 20))]), rng()
    views = [subject.draw(generator, PATCH, augment="strong") for _ in range(16)]
    assert len({view.look for view in views}) == 16
    assert len({view.look.gamma for view in views}) == 16 == len({view.look.noise_seed for view in views})
    assert len({view.corner for view in views}) > 8
    assert {subject.draw(generator, PATCH, augment="none").look for _ in range(16)} == {Look()}


def test_a_flip_mirrors_image_and_labels_alike() -> None:
    subject = SubjectVolumes([volume((16, 16, 16))])
    straight, flipped = (subject.cut(Draw(0, (0, 0, 0), Look(flip=flip)), PATCH) for flip in (False, True))
    np.testing.assert_array_equal(flipped[0], straight[0][::-1])
    np.testing.assert_array_equal(flipped[1], straight[1][::-1])


def test_a_warp_by_the_identity_is_a_straight_cut() -> None:
    subject = SubjectVolumes([volume((20, 20, 20))])
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    straight, warped = (subject.cut(Draw(0, (-3, 2, 5), Look(warp=warp)), PATCH) for warp in (None, identity))
    np.testing.assert_allclose(warped[0], straight[0], atol=1e-4)
    np.testing.assert_array_equal(warped[1], straight[1])


def test_a_warp_moves_image_and_labels_together() -> None:
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[6:18, 8:16, 7:15] = 1
    source: Any = SimpleNamespace(image=labels.astype(np.float32), labels=labels)
    turned = ((0.97, -0.24, 0.0), (0.24, 0.97, 0.0), (0.0, 0.0, 1.1))
    image, moved = SubjectVolumes([source]).cut(Draw(0, (0, 0, 0), Look(warp=turned)), (24, 24, 24))
    assert not np.array_equal(moved, labels)
    assert ((image > 0.5) == (moved == 1)).mean() > 0.99


def test_intensities_vary_as_described() -> None:
    image = np.linspace(-1, 1, 27, dtype=np.float32).reshape(3, 3, 3)
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1] = 1
    np.testing.assert_allclose(vary_intensity(image, labels, Look()), image, atol=1e-6)
    np.testing.assert_allclose(vary_intensity(image, labels, Look(shift=0.5)), image + 0.5, atol=1e-6)
    np.testing.assert_allclose(vary_intensity(image, labels, Look(contrast=2.0)), image * 2, atol=1e-6)
    np.testing.assert_allclose(
        vary_intensity(image, labels, Look(gamma=2.0)), ((image + 1) / 2) ** 2 * 2 - 1, atol=1e-6
    )
    noisy = vary_intensity(image, labels, Look(noise_sd=0.1, noise_seed=1)) - image
    assert 0.05 < float(noisy.std()) < 0.2
    np.testing.assert_array_equal(
        vary_intensity(np.zeros((2, 2, 2), np.float32), labels[:2, :2, :2], Look(gamma=1.3)), 0
    )


def test_looks_stay_within_their_bounds() -> None:
    generator = rng()
    looks = [draw_look(generator, "light") for _ in range(200)]
    assert 0.3 < np.mean([look.flip for look in looks]) < 0.7
    assert all(0.7 < look.gamma < 1.4 and 0.7 < look.contrast < 1.3 and look.noise_sd <= 0.1 for look in looks)
    warps = [np.array(look.warp) for look in looks if look.warp is not None]
    assert 50 < len(warps) < 150
    assert all(0.5 < np.linalg.det(warp) < 2 for warp in warps)


def test_what_is_strong_is_light_and_more() -> None:
    light, strong = (draw_look(rng(5), strength) for strength in ("light", "strong"))
    assert (light.flip, light.warp, light.gamma, light.noise_seed) == (
        strong.flip,
        strong.warp,
        strong.gamma,
        strong.noise_seed,
    )
    generator = rng()
    looks = [draw_look(generator, "strong") for _ in range(300)]
    for shares in ("bend", "shading", "tint"):
        assert 0.1 < np.mean([getattr(look, shares) > 0 for look in looks]) < 0.45
    assert {look.slices[0] for look in looks if look.slices[1] > 1} == {0, 1, 2}
    assert all(look.slices[1] <= 3 and max(look.blur) <= 1 and look.bend <= 2 for look in looks)


def test_a_bend_moves_image_and_labels_together() -> None:
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[6:18, 8:16, 7:15] = 1
    source: Any = SimpleNamespace(image=labels.astype(np.float32), labels=labels)
    image, moved = SubjectVolumes([source]).cut(Draw(0, (0, 0, 0), Look(bend=1.5, noise_seed=3)), (24, 24, 24))
    assert not np.array_equal(moved, labels)
    assert ((image > 0.5) == (moved == 1)).mean() > 0.99


def test_tint_shading_and_slices_change_what_they_name() -> None:
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:12] = 2
    image = np.where(labels == 2, 2.0, -1.0).astype(np.float32)
    tinted = vary_intensity(image, labels, Look(tint=0.5))
    np.testing.assert_allclose(tinted[labels == 0], -1, atol=1e-6)
    assert len(np.unique(tinted[labels == 2])) == 1 and abs(float(tinted[8, 8, 8]) - 2) > 0.01
    shaded = vary_intensity(image, labels, Look(shading=0.3))
    np.testing.assert_allclose(shaded[labels == 0], -1, atol=1e-6)
    assert float(shaded[labels == 2].std()) > 0.01
    thick = vary_intensity(image, labels, Look(slices=(1, 3.0)))
    assert np.unique(thick[8, :, 8]).size > np.unique(thick[:, 8, 8]).size
    blurred = vary_intensity(image, labels, Look(blur=(1.0, 0.0, 0.0)))
    assert np.unique(blurred[:, 8, 8]).size > 2 == np.unique(blurred[8, :, 8]).size


def test_a_made_up_image_has_its_subjects_anatomy_and_a_contrast_of_its_own() -> None:
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[4:28, 4:28, 4:28] = 1
    labels[8:24, 8:24, 8:24] = 3
    subject = SubjectVolumes([SimpleNamespace(image=labels.astype(np.float32), labels=labels)])
    generator = rng(1)
    images = [subject.made_up(generator, 2.0) for _ in range(2)]
    patches = [each.cut(each.draw(rng(), PATCH, augment="none"), PATCH) for each in images]
    assert all(set(np.unique(truth)) <= {0, 1, 3} for _, truth in patches)
    assert not np.array_equal(patches[0][0], patches[1][0])


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ([], "a training subject has no volume"),
        ([SimpleNamespace(image=np.zeros((4, 4, 4)), labels=None)], "a training volume has no labels"),
        ([SimpleNamespace(image=np.zeros((4, 4, 4)), labels=np.zeros((4, 4, 5)))], "differ in shape, or are not 3D"),
        ([SimpleNamespace(image=np.zeros((4, 4)), labels=np.zeros((4, 4)))], "differ in shape, or are not 3D"),
    ],
)
def test_volumes_that_cannot_train_are_refused(volumes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SubjectVolumes(volumes)
