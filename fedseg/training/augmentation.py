"""How a training patch is varied: drawn first, applied after, so that one generator decides everything.

`light` turns, scales, mirrors and shifts greys. `strong` also bends, shades, blurs, thickens slices and recolours
tissues: what differs between scanners and protocols (after nnU-Net, Isensee et al. 2021, supplementary note 4, and
SynthSeg, Billot et al. 2023). A patch's geometry is resampled once, whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fedseg.imaging import resampling
from fedseg.imaging.synthesis_fields import interpolate

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]
Voxel = TypeVar("Voxel", bound=np.generic)
Matrix = tuple[tuple[float, float, float], ...]

WARP_CHANCE = 0.3
NOISE_CHANCE = 0.5
MAX_ROTATION_RAD = 0.26
MAX_LOG_SCALE = 0.16
MAX_LOG_STRETCH = 0.05
MAX_LOG_GAMMA = 0.3
MAX_LOG_CONTRAST = 0.25
SHIFT_SD = 0.15
MAX_NOISE_SD = 0.1

BEND_CHANCE = 0.2
SHADING_CHANCE = 0.3
BLUR_CHANCE = 0.2
SLICES_CHANCE = 0.15
TINT_CHANCE = 0.3
MAX_BEND = 2.0
MAX_SHADING = 0.3
BLUR_SD = (0.3, 1.0)
SLICES = (1.5, 3.0)
MAX_TINT = 0.4

_BEND_KNOTS = 12.0
_SHADING_KNOTS = 24.0
_MOST_LABELS = 256


@dataclass(frozen=True)
class Look:
    """How one patch is varied. The default leaves it as it is.

    Attributes:
        flip: Mirror left and right (the first axis, in RAS); safe for labels that don't name a side.
        warp: 3x3 matrix from patch to volume axes about the patch's centre (rotation, scale); None: cut straight.
        bend: Standard deviation in voxels of a smooth displacement along each axis.
        gamma: Exponent on the patch's intensities, scaled to 0..1 for it.
        contrast: Factor about the patch's mean.
        shift: Added to every voxel, in standard deviations of the volume.
        tint: Standard deviation of what is added to each class, background left out.
        shading: Standard deviation of the logarithm of a smooth factor over intensities above the darkest.
        blur: Standard deviation of a Gaussian along each axis, in voxels.
        slices: Axis, and thickness in voxels, of slices that the patch is averaged to and read from; 1 for none.
        noise_sd: Standard deviation of white noise.
        noise_seed: What noise, bend, tint and shading are a function of.
    """

    flip: bool = False
    warp: Matrix | None = None
    bend: float = 0.0
    gamma: float = 1.0
    contrast: float = 1.0
    shift: float = 0.0
    tint: float = 0.0
    shading: float = 0.0
    blur: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slices: tuple[int, float] = (0, 1.0)
    noise_sd: float = 0.0
    noise_seed: int = 0


def draw_look(rng: np.random.Generator, strength: str) -> Look:
    """Random variation of one patch. Every call of one strength takes the same number of draws from `rng`.

    Args:
        rng: Decides everything.
        strength: `none`, `light` or `strong`.
    """
    if strength == "none":
        return Look()
    light = _draw_light(rng)
    return light if strength == "light" else _strengthen(light, rng)


def _draw_light(rng: np.random.Generator) -> Look:
    angles = rng.uniform(-MAX_ROTATION_RAD, MAX_ROTATION_RAD, 3)
    scales = np.exp(rng.uniform(-MAX_LOG_SCALE, MAX_LOG_SCALE) + rng.uniform(-MAX_LOG_STRETCH, MAX_LOG_STRETCH, 3))
    warp, noise, flip = rng.random() < WARP_CHANCE, rng.random() < NOISE_CHANCE, rng.random() < 0.5
    return Look(
        flip=bool(flip),
        gamma=float(np.exp(rng.uniform(-MAX_LOG_GAMMA, MAX_LOG_GAMMA))),
        contrast=float(np.exp(rng.uniform(-MAX_LOG_CONTRAST, MAX_LOG_CONTRAST))),
        shift=float(rng.normal(0, SHIFT_SD)),
        noise_sd=float(rng.uniform(0, MAX_NOISE_SD)) * bool(noise),
        noise_seed=int(rng.integers(2**32)),
        warp=_rows(_rotation(angles) * scales) if warp else None,
    )


def _strengthen(look: Look, rng: np.random.Generator) -> Look:
    """The same look, with what `strong` adds."""
    bend, shade, blur, slices, tint = rng.random(5) < (
        BEND_CHANCE,
        SHADING_CHANCE,
        BLUR_CHANCE,
        SLICES_CHANCE,
        TINT_CHANCE,
    )
    sizes, axis = rng.uniform((0.0, 0.0, SLICES[0], 0.0), (MAX_BEND, MAX_SHADING, SLICES[1], MAX_TINT)), rng.integers(3)
    first, second, third = (float(sd) for sd in rng.uniform(*BLUR_SD, 3))
    return replace(
        look,
        bend=float(sizes[0]) * bool(bend),
        shading=float(sizes[1]) * bool(shade),
        blur=(first, second, third) if blur else (0.0, 0.0, 0.0),
        slices=(int(axis), float(sizes[2]) if slices else 1.0),
        tint=float(sizes[3]) * bool(tint),
    )


def place(volume: npt.NDArray[Voxel], corner: Shape, patch: Shape, look: Look, outside: float) -> npt.NDArray[Voxel]:
    """Cut a patch, turned, scaled and bent: linear for greys, nearest neighbour for labels (uint8).

    Args:
        volume: [X, Y, Z].
        corner: Lowest corner of the unwarped patch; may lie outside.
        patch: Its shape.
        look: What is done to it.
        outside: Value of what lies beyond the volume.
    """
    order = 0 if volume.dtype == np.uint8 else 1
    half = (np.array(patch) - 1) / 2
    matrix = np.eye(3) if look.warp is None else np.array(look.warp)
    offset = np.array(corner) + half - matrix @ half
    resample: Callable[..., npt.NDArray[Voxel]] = ndimage.affine_transform
    where: tuple[object, ...] = (matrix, offset, patch)
    if look.bend:
        resample, where = ndimage.map_coordinates, (_bent(matrix, offset, patch, look),)
    return resample(volume, *where, order=order, mode="constant", cval=outside, prefilter=False)


def vary_intensity(image: Image, labels: Labels, look: Look) -> Image:
    """Everything of `look` that is about greys, applied to a patch; a new contiguous array of the same shape."""
    low, high = float(image.min()), float(image.max())
    out = np.array(image, dtype=np.float32, order="C")
    if look.gamma != 1.0 and high > low:
        out = (((out - low) / np.float32(high - low)) ** np.float32(look.gamma)) * np.float32(high - low) + low
    if look.tint:
        tints = np.random.default_rng((look.noise_seed, 1)).normal(0.0, look.tint, _MOST_LABELS)
        tints[0] = 0.0
        out += tints.astype(np.float32)[labels]
    if look.shading:
        field = _smooth(np.random.default_rng((look.noise_seed, 2)), out.shape, _SHADING_KNOTS)
        out = (out - low) * np.exp(np.float32(look.shading) * field) + np.float32(low)
    if any(look.blur) or look.slices[1] > 1:
        out = resampling.apply(_resolution(out.shape, look), out)
    mean = float(out.mean())
    out = (out - mean) * np.float32(look.contrast) + np.float32(mean + look.shift)
    if look.noise_sd > 0:
        noise = np.random.default_rng(look.noise_seed).standard_normal(out.shape, dtype=np.float32)
        out += np.float32(look.noise_sd) * noise
    return out.astype(np.float32, copy=False)


def _bent(matrix: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], patch: Shape, look: Look) -> Image:
    """Where each voxel of the patch is read, float32 [3, *patch]."""
    rng = np.random.default_rng((look.noise_seed, 0))
    x, y, z = (np.arange(side, dtype=np.float32) for side in patch)
    where = np.empty((3, *patch), np.float32)
    for axis in range(3):
        row, start = matrix[axis].astype(np.float32), np.float32(offset[axis])
        where[axis] = np.float32(look.bend) * _smooth(rng, patch, _BEND_KNOTS)
        where[axis] += (row[0] * x + start)[:, None, None] + (row[1] * y)[:, None] + row[2] * z
    return where


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: float) -> Image:
    """Smooth noise of about unit variance, with knots so many voxels apart; the same for patches of one shape."""
    axes = [np.arange(side, dtype=np.float32) for side in shape]
    at = [np.arange(0.0, side - 1 + 2 * knots, knots, dtype=np.float32) for side in shape]
    values = rng.standard_normal(tuple(each.size for each in at), dtype=np.float32)
    return interpolate(values, (at[0], at[1], at[2]), (axes[0], axes[1], axes[2])) * np.float32(1.4)


def _resolution(shape: tuple[int, ...], look: Look) -> resampling.Matrices:
    """Blur along each axis, and along one of them thick slices and back, as one matrix an axis."""
    matrices = [_gaussian(side, sd) for side, sd in zip(shape, look.blur, strict=True)]
    axis, thick = look.slices
    if thick > 1:
        side = shape[axis]
        slices = resampling.grid_size(side, 1.0, thick)
        down = resampling.weights(resampling.centres(slices, thick, side), thick, side)
        up = resampling.weights(resampling.centres(side, 1 / thick, slices), 1 / thick, slices)
        matrices[axis] = np.asarray(up @ down @ matrices[axis], np.float32)
    return (matrices[0], matrices[1], matrices[2])


def _gaussian(side: int, sd: float) -> Image:
    """Square matrix that blurs along one axis, each row summing to one; `sd` in voxels."""
    distance = np.arange(side)[:, None] - np.arange(side)[None, :]
    weights = np.exp(-0.5 * (distance / max(sd, 0.05)) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    product: npt.NDArray[np.float64] = about_x @ about_y @ about_z
    return product


def _rows(matrix: npt.NDArray[np.float64]) -> Matrix:
    return tuple((float(a), float(b), float(c)) for a, b, c in matrix)
