"""Made-up images of label maps: what a network can learn of anatomy without anybody's scan.

After SynthSeg (Billot et al. 2023, Medical Image Analysis 86:102789) and FetalSynthSeg (Zalevskyi et al. 2024,
2403.15103): every image has a contrast, a shape, a coil shading and a resolution of its own, so that a network that
has seen many takes none of them for granted. `draw_recipe` takes every random number, `generate` only computes.

Intensities are relative to bright fluid, which is about 1; the result is normalised like a prepared scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging import resampling
from fedseg.imaging.synthesis_anatomy import EXTERNAL_CSF, VENTRICLES, WHITE_MATTER
from fedseg.imaging.synthesis_fields import Field, interpolate
from fedseg.labels import FETA

Labels = NDArray[np.uint8]
Row = tuple[float, float, float]

FETAL_CHANCE = 0.8
"""Of a contrast in which fluid is brighter than tissue, as in T2-weighted scans of the fetal brain; else any."""

STRIPPED_CHANCE = 0.6
LOOSE_CHANCE = 0.5
THIN_FLUID_CHANCE = 0.3
THICK_SLICES_CHANCE = 0.3

_FETAL_MEANS = (0.84, 0.42, 0.59, 0.90, 0.51, 0.48, 0.43)
_FLUID = 0.87
_JITTER_SD = 0.06
_MAX_ROTATION = 0.3
_MAX_LOG_SIZE = 0.18
_MAX_LOG_STRETCH = 0.08
_MAX_BEND_MM = 2.5
_BEND_SCALE_MM = 28.0
_SHADING_SCALE_MM = 45.0
_TEXTURE_SCALES_MM = (3.0, 9.0)
_LAYER_MM = 2.5
_EDGE_MM = 1.0
_RING_MM = 4.0
_SURROUNDINGS = 3
_BRIGHTEST_PERCENTILE = 99.5


@dataclass(frozen=True)
class Recipe:
    """All that is random about one image.

    Attributes:
        flip: Mirror left and right (the first axis, in RAS); safe for labels that don't name a side.
        matrix: 3x3 matrix from the image's axes to those of the label map, about their centres.
        bend_mm: Standard deviation of the smooth displacement along each axis.
        thin_fluid: Share of a brain around a voxel below which its external fluid is taken away, 0 for none.
        means: Of each of FeTA's seven tissues, in their order.
        spreads: Standard deviation of white noise in each tissue.
        textures: Standard deviation of smooth variation in each tissue.
        subplate: Added to white matter at its rim.
        germinal: Added to white matter beside the ventricles.
        around: Means of what lies around the brain, from the inside outwards: skull, skin, fluid; None: stripped.
        edge: Where a stripped image ends: share of a head around a voxel.
        loose: Where one that is not stripped ends, likewise; 0: nowhere.
        shading: Standard deviation of the logarithm of the coil shading.
        blur_mm: Standard deviation of the blur along each axis.
        slices: Axis and thickness in mm of thick slices.
        noise: Standard deviation of the complex noise.
        gamma: Exponent on intensities.
        seed: What fields and noise are a function of.
    """

    flip: bool
    matrix: tuple[Row, Row, Row]
    bend_mm: float
    thin_fluid: float
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    textures: tuple[float, ...]
    subplate: float
    germinal: float
    around: tuple[float, ...] | None
    edge: float
    loose: float
    shading: float
    blur_mm: Row
    slices: tuple[int, float]
    noise: float
    gamma: float
    seed: int


def draw_recipe(rng: np.random.Generator, *, fetal: bool = False) -> Recipe:
    """Draw one image's contrast, shape, shading and resolution; `fetal`: never a contrast that T2w scans don't have."""
    around = tuple(float(value) for value in rng.uniform((0.02, 0.1, 0.2), (0.3, 0.6, 0.9)))
    chances = (STRIPPED_CHANCE, LOOSE_CHANCE, THIN_FLUID_CHANCE, THICK_SLICES_CHANCE)
    stripped, loose, thin, thick = rng.random(4) < chances
    blur = rng.uniform(0.4, 1.5) * np.exp(rng.normal(0.0, 0.15, 3))
    return Recipe(
        flip=bool(rng.random() < 0.5),
        matrix=_draw_matrix(rng),
        bend_mm=float(rng.uniform(0.0, _MAX_BEND_MM)),
        thin_fluid=float(rng.uniform(0.05, 0.5)) * bool(thin),
        means=_draw_means(rng, 1.0 if fetal else FETAL_CHANCE),
        spreads=tuple(float(value) for value in rng.uniform(0.0, 0.06, FETA.classes - 1)),
        textures=tuple(float(value) for value in rng.uniform(0.0, 0.07, FETA.classes - 1)),
        subplate=float(rng.uniform(-0.05, 0.12)),
        germinal=float(rng.uniform(-0.2, 0.02)),
        around=None if stripped else around,
        edge=float(rng.uniform(0.02, 0.5)),
        loose=float(rng.uniform(0.005, 0.1)) * bool(loose),
        shading=float(rng.uniform(0.0, 0.18)),
        blur_mm=(float(blur[0]), float(blur[1]), float(blur[2])),
        slices=(int(rng.integers(3)), float(rng.uniform(2.0, 4.5)) * bool(thick)),
        noise=float(rng.uniform(0.0, 0.05)),
        gamma=float(np.exp(rng.normal(0.0, 0.25))),
        seed=int(rng.integers(2**63)),
    )


def generate(labels: Labels, spacing_mm: float, recipe: Recipe) -> tuple[Field, Labels]:
    """Make the image that a recipe describes, and its labels.

    Args:
        labels: uint8 [X, Y, Z] in RAS, FeTA's seven tissues; all background gives an image of one value.
        spacing_mm: Edge of its voxels.
        recipe: From `draw_recipe`.

    Returns:
        Image float32 and labels uint8 of one shape, which follows the recipe's size. The image's foreground has zero
        mean and unit variance, and its least value is the background, as in `transforms.Prepared`.
    """
    rng = np.random.default_rng(recipe.seed)
    warped = _warp(rng, labels, spacing_mm, recipe)
    if recipe.thin_fluid > 0:
        _thin_the_fluid(warped, spacing_mm, recipe.thin_fluid)
    image = _paint(rng, warped, spacing_mm, recipe)
    image = resampling.apply(resolution(image.shape, spacing_mm, recipe), image)
    image *= np.exp(np.float32(recipe.shading) * noise(rng, image.shape, spacing_mm, _SHADING_SCALE_MM))
    image = rician(rng, image, recipe.noise)
    reach_mm, least = (_EDGE_MM, recipe.edge) if recipe.around is None else (_RING_MM, recipe.loose)
    image[share(warped > 0, spacing_mm, reach_mm) < least] = 0
    return normalise(image, recipe.gamma), warped


def _draw_matrix(rng: np.random.Generator) -> tuple[Row, Row, Row]:
    angles = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION, 3)
    size = rng.uniform(-_MAX_LOG_SIZE, _MAX_LOG_SIZE)
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    matrix = matrix * np.exp(size + rng.uniform(-_MAX_LOG_STRETCH, _MAX_LOG_STRETCH, 3))
    first, second, third = ((float(a), float(b), float(c)) for a, b, c in matrix)
    return (first, second, third)


def _draw_means(rng: np.random.Generator, fetal_chance: float) -> tuple[float, ...]:
    """Means of the seven tissues: about those of fetal T2w at any strength of contrast, or anything."""
    fetal = np.array(_FETAL_MEANS) + rng.normal(0.0, _JITTER_SD, FETA.classes - 1)
    fetal = _FLUID + rng.uniform(0.45, 1.25) * (fetal - _FLUID)
    anything = rng.uniform(0.05, 1.0, FETA.classes - 1)
    chosen = fetal if rng.random() < fetal_chance else anything
    return tuple(float(value) for value in np.clip(chosen, 0.02, 1.5))


def _warp(rng: np.random.Generator, labels: Labels, spacing_mm: float, recipe: Recipe) -> Labels:
    """The label map turned, scaled and bent, nearest neighbour; outside it is what its rim is."""
    matrix = np.array(recipe.matrix)
    size = abs(np.linalg.det(matrix)) ** (-1 / 3)
    shape = tuple(max(4, round(side * size)) for side in labels.shape)
    offsets = [np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in shape]
    index = np.zeros(shape, np.int32)
    for axis, side in enumerate(labels.shape):
        row = matrix[axis].astype(np.float32)
        place = noise(rng, shape, spacing_mm, _BEND_SCALE_MM) * np.float32(recipe.bend_mm / spacing_mm)
        place += (row[0] * offsets[0] + np.float32((side - 1) / 2))[:, None, None]
        place += (row[1] * offsets[1])[:, None] + row[2] * offsets[2]
        index = index * np.int32(side) + np.clip(np.rint(place), 0, side - 1).astype(np.int32)
    warped: Labels = labels.ravel()[index]
    return warped[::-1].copy() if recipe.flip else warped


def _thin_the_fluid(labels: Labels, spacing_mm: float, least: float) -> None:
    """Make external fluid background, in place, where little brain is near: spina bifida leaves as good as none."""
    brain = share((labels != 0) & (labels != EXTERNAL_CSF), spacing_mm, _LAYER_MM)
    labels[(labels == EXTERNAL_CSF) & (brain < least)] = 0


def _paint(rng: np.random.Generator, labels: Labels, spacing_mm: float, recipe: Recipe) -> Field:
    """The tissues, and what is around them where it isn't stripped away."""
    image = paint_tissues(rng, labels, spacing_mm, recipe)
    if recipe.around is not None:
        _paint_around(rng, image, labels, spacing_mm, recipe.around)
    return np.maximum(image, 0)


def paint_tissues(rng: np.random.Generator, labels: Labels, spacing_mm: float, recipe: Recipe) -> Field:
    """Each tissue in its own grey, with white noise, a texture, and white matter's layers; 0 elsewhere."""
    means, spreads, textures = (_table(values) for values in (recipe.means, recipe.spreads, recipe.textures))
    image: Field = means[labels]
    image += spreads[labels] * rng.standard_normal(labels.shape, dtype=np.float32)
    texture = sum(noise(rng, labels.shape, spacing_mm, scale) for scale in _TEXTURE_SCALES_MM)
    image += textures[labels] * np.asarray(texture, np.float32)
    white = labels == WHITE_MATTER
    image += white * np.float32(2 * recipe.subplate) * (1 - share(white, spacing_mm, _LAYER_MM))
    image += white * np.float32(2 * recipe.germinal) * share(labels == VENTRICLES, spacing_mm, _LAYER_MM)
    return image


def _paint_around(
    rng: np.random.Generator, image: Field, labels: Labels, spacing_mm: float, around: tuple[float, ...]
) -> None:
    """Skull, skin and fluid as rings of uneven width, in place."""
    near = share(labels > 0, spacing_mm, _RING_MM) + np.float32(0.05) * noise(rng, labels.shape, spacing_mm, 12.0)
    rings = np.digitize(near, (0.06, 0.2)).astype(np.uint8)
    outside = labels == 0
    greys = np.array(around[::-1], np.float32)
    grain = rng.standard_normal(int(outside.sum()), dtype=np.float32)
    image[outside] = greys[rings[outside]] * (1 + np.float32(0.1) * grain)


def _table(values: tuple[float, ...]) -> Field:
    """Values by label, 0 for the background."""
    return np.array((0.0, *values), np.float32)


def share(mask: NDArray[np.bool_], spacing_mm: float, sd_mm: float) -> Field:
    """Gaussian-weighted share of `mask` around each voxel, 0 to 1."""
    first, second, third = (_gaussian(side, sd_mm / spacing_mm) for side in mask.shape)
    return resampling.apply((first, second, third), mask.astype(np.float32))


def _gaussian(side: int, sd: float) -> Field:
    """Square matrix that blurs along one axis, each row summing to one; `sd` in voxels."""
    distance = np.arange(side)[:, None] - np.arange(side)[None, :]
    weights = np.exp(-0.5 * (distance / max(sd, 0.05)) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def resolution(shape: tuple[int, ...], spacing_mm: float, recipe: Recipe) -> resampling.Matrices:
    """Blur along each axis, and along one of them thick slices and back, as one matrix an axis."""
    matrices = [_gaussian(side, sd / spacing_mm) for side, sd in zip(shape, recipe.blur_mm, strict=True)]
    axis, thick = recipe.slices
    if thick > spacing_mm:
        side, step = shape[axis], thick / spacing_mm
        slices = resampling.grid_size(side, spacing_mm, thick)
        down = resampling.weights(resampling.centres(slices, step, side), step, side)
        up = resampling.weights(resampling.centres(side, 1 / step, slices), 1 / step, slices)
        matrices[axis] = np.asarray(up @ down @ matrices[axis], np.float32)
    return (matrices[0], matrices[1], matrices[2])


def noise(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, scale_mm: float) -> Field:
    """Smooth noise, about unit variance, with knots `scale_mm` apart."""
    axes = [np.arange(side, dtype=np.float32) * np.float32(spacing_mm) for side in shape]
    knots = [np.arange(axis[0], axis[-1] + 2 * scale_mm, scale_mm, dtype=np.float32) for axis in axes]
    values = rng.standard_normal(tuple(knot.size for knot in knots), dtype=np.float32)
    return interpolate(values, (knots[0], knots[1], knots[2]), (axes[0], axes[1], axes[2])) * np.float32(1.4)


def rician(rng: np.random.Generator, image: Field, sd: float) -> Field:
    """Magnitude of the image with complex Gaussian noise (Gudbjartsson and Patz 1995)."""
    real = image + np.float32(sd) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sd) * rng.standard_normal(image.shape, dtype=np.float32)
    magnitude: Field = np.sqrt(real * real + imaginary * imaginary)
    return magnitude


def normalise(image: Field, gamma: float) -> Field:
    """Gamma, then zero mean and unit variance of what is brighter than background, as `transforms.prepare` does."""
    foreground = image > 0.05 * image.max()
    if not foreground.any():
        return np.zeros_like(image)
    top = np.float32(max(np.percentile(image[foreground], _BRIGHTEST_PERCENTILE), 1e-6))
    image = np.minimum(image / top, 1) ** np.float32(gamma)
    inside = image[foreground]
    spread = max(float(inside.std(dtype=np.float64)), 1e-6)
    return ((image - np.float32(inside.mean(dtype=np.float64))) / np.float32(spread)).astype(np.float32)
