"""Made-up images: labels survive, contrasts differ, one generator decides everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedseg.imaging.generation import Recipe, draw_recipe, generate
from fedseg.imaging.label_maps import made_up_labels

SPACING_MM = 3.0
STILL = Recipe(
    flip=False, matrix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), bend_mm=0.0, thin_fluid=0.0,
    means=(0.9, 0.4, 0.6, 0.8, 0.5, 0.3, 0.2), spreads=(0.0,) * 7, textures=(0.0,) * 7, subplate=0.0, germinal=0.0,
    around=None, edge=0.3, loose=0.0, shading=0.0, blur_mm=(0.01, 0.01, 0.01), slices=(0, 0.0), noise=0.0,
    gamma=1.0, seed=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def brain() -> NDArray[np.uint8]:
    return made_up_labels(1, 0, SPACING_MM)


def correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_every_image_is_finite_normalised_and_fits_its_labels(brain: NDArray[np.uint8], seed: int) -> None:
    image, labels = generate(brain, SPACING_MM, draw_recipe(np.random.default_rng(seed)))
    assert image.shape == labels.shape
    assert image.dtype == np.float32 and labels.dtype == np.uint8
    assert np.isfinite(image).all()
    assert abs(float(image[labels > 0].mean())) < 3.5 and float(image.std()) > 0.3


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_every_tissue_survives_the_deformation(brain: NDArray[np.uint8], seed: int) -> None:
    recipe = draw_recipe(np.random.default_rng(seed))
    _, labels = generate(brain, SPACING_MM, recipe)
    size = abs(np.linalg.det(np.array(recipe.matrix)))
    before, after = np.bincount(brain.ravel(), minlength=8), np.bincount(labels.ravel(), minlength=8)
    assert labels.max() <= 7
    for tissue in range(2, 8):
        assert 0.4 < after[tissue] * size / before[tissue] < 1.8


def test_a_still_recipe_leaves_the_labels_and_paints_each_tissue_with_its_mean(brain: NDArray[np.uint8]) -> None:
    image, labels = generate(brain, SPACING_MM, STILL)
    np.testing.assert_array_equal(labels, brain)
    greys = [image[(labels == tissue) & (image > image.min())] for tissue in range(1, 8)]
    means = np.array([float(np.median(grey)) for grey in greys])
    assert correlation(means, np.array(STILL.means)) > 0.999
    assert max(float(grey.std()) for grey in greys) < 1e-5


def test_a_flip_mirrors_the_first_axis(brain: NDArray[np.uint8]) -> None:
    _, labels = generate(brain, SPACING_MM, replace(STILL, flip=True))
    np.testing.assert_array_equal(labels, brain[::-1])


def test_a_larger_head_gets_a_larger_field_of_view(brain: NDArray[np.uint8]) -> None:
    shrink = 1 / 1.2
    larger = replace(STILL, matrix=((shrink, 0.0, 0.0), (0.0, shrink, 0.0), (0.0, 0.0, shrink)))
    _, labels = generate(brain, SPACING_MM, larger)
    assert labels.shape == tuple(round(1.2 * side) for side in brain.shape)
    assert (labels > 0).sum() == pytest.approx(1.2**3 * (brain > 0).sum(), rel=0.05)


def test_the_generator_decides_everything(brain: NDArray[np.uint8]) -> None:
    first, again, other = (draw_recipe(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again != other
    one, two = generate(brain, SPACING_MM, first), generate(brain, SPACING_MM, again)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_contrasts_differ_and_most_are_those_of_fetal_scans() -> None:
    generator = np.random.default_rng(0)
    means = np.array([draw_recipe(generator).means for _ in range(200)])
    fluid_above_cortex = float((means[:, 0] > means[:, 1]).mean())
    assert 0.8 < fluid_above_cortex < 0.97
    assert float(means.std(axis=0).min()) > 0.1


def test_a_stripped_image_has_one_background_and_others_have_surroundings(brain: NDArray[np.uint8]) -> None:
    stripped, labels = generate(brain, SPACING_MM, STILL)
    around, _ = generate(brain, SPACING_MM, replace(STILL, around=(0.1, 0.3, 0.6)))
    assert float((stripped[labels == 0] == stripped.min()).mean()) > 0.9
    assert float((around[labels == 0] == around.min()).mean()) < 0.1
    loose, _ = generate(brain, SPACING_MM, replace(STILL, around=(0.1, 0.3, 0.6), loose=0.05))
    assert 0.1 < float((loose[labels == 0] == loose.min()).mean()) < 0.9


def test_thin_fluid_becomes_background_and_nothing_else_moves(brain: NDArray[np.uint8]) -> None:
    _, labels = generate(brain, SPACING_MM, replace(STILL, thin_fluid=0.4))
    changed = labels != brain
    assert 0.1 < float(changed.sum()) / float((brain == 1).sum()) < 1
    assert set(np.unique(brain[changed])) == {1} and set(np.unique(labels[changed])) == {0}


def test_thick_slices_blur_one_axis(brain: NDArray[np.uint8]) -> None:
    noisy = replace(STILL, spreads=(0.2,) * 7)
    thick = replace(noisy, slices=(2, 9.0))

    def roughness(recipe: Recipe) -> NDArray[np.float64]:
        image, labels = generate(brain, SPACING_MM, recipe)
        inside = labels == 3
        return np.array([np.abs(np.diff(image, axis=a))[np.delete(inside, -1, a)].mean() for a in range(3)])

    ratio = roughness(thick) / roughness(noisy)
    assert ratio[2] < 0.6 * ratio[0]


@pytest.mark.parametrize("shape", [(4, 4, 4), (9, 20, 7)])
def test_an_empty_map_gives_an_image_without_content(shape: tuple[int, int, int]) -> None:
    for seed in range(8):
        image, labels = generate(np.zeros(shape, np.uint8), SPACING_MM, draw_recipe(np.random.default_rng(seed)))
        assert image.shape == labels.shape and not labels.any() and np.isfinite(image).all()


def test_made_up_label_maps_are_a_function_of_seed_and_index() -> None:
    first, again, other = (made_up_labels(5, index, SPACING_MM) for index in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or bool((first != other).any())
    assert set(np.unique(first)) == set(range(8))
