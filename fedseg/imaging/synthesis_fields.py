"""Bodies as signed distances, and smooth noise: the geometry that made-up brains are built of.

A body is an array of distances to its surface, negative inside, in the unit of the coordinates.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Knot = tuple[float, float, float, float]
"""Across, front, up and radius."""


def interpolate(field: Field, at: tuple[Field, Field, Field], to: tuple[Field, Field, Field]) -> Field:
    """Cubic convolution (Keys 1981) from one regular grid to another, an axis at a time."""
    first, second, third = (_cubic_weights(old, new) for old, new in zip(at, to, strict=True))
    rows = (first @ field.reshape(field.shape[0], -1)).reshape(-1, *field.shape[1:])
    refined: Field = np.matmul(second, rows) @ third.T
    return refined


def smooth_noise(rng: np.random.Generator, axes: tuple[Field, Field, Field], scale: float) -> Field:
    """A smooth random field on a regular grid: about unit variance, knots `scale` apart in the axes' unit."""
    knots = tuple(np.arange(axis[0], axis[-1] + 2 * scale, scale, dtype=np.float32) for axis in axes)
    values = rng.standard_normal(tuple(knot.size for knot in knots), dtype=np.float32)
    return interpolate(values, (knots[0], knots[1], knots[2]), axes) * np.float32(1.4)


def ellipsoid(x: Field, y: Field, z: Field, radii: tuple[float, float, float]) -> Field:
    """Signed distance, first order; exact on the surface and on the axes."""
    a, b, c = (np.float32(1 / radius) for radius in radii)
    inner = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * c) ** 2) + np.float32(1e-4)
    slope = np.sqrt((x * a * a) ** 2 + (y * b * b) ** 2 + (z * c * c) ** 2) + np.float32(1e-4)
    distance: Field = inner * (inner - 1) / slope
    return distance


def tube(x: Field, y: Field, z: Field, knots: tuple[Knot, ...]) -> Field:
    """Signed distance to a chain of tapering capsules."""
    nearest = np.full(x.shape, np.inf, np.float32)
    for start, stop in pairwise(knots):
        delta = [b - a for a, b in zip(start, stop, strict=True)]
        offset = [value - np.float32(origin) for value, origin in zip((x, y, z), start, strict=False)]
        along = sum(part * np.float32(step) for part, step in zip(offset, delta, strict=False))
        share = np.clip(along / np.float32(sum(step * step for step in delta[:3])), 0, 1)
        gap = [part - share * np.float32(step) for part, step in zip(offset, delta, strict=False)]
        radius = np.float32(start[3]) + share * np.float32(delta[3])
        nearest = np.minimum(nearest, np.sqrt(gap[0] ** 2 + gap[1] ** 2 + gap[2] ** 2) - radius)
    return nearest


def union(first: Field, second: Field, blend: float) -> Field:
    """Smooth minimum: two bodies joined with a fillet of about `blend`."""
    overlap = np.maximum(blend - np.abs(first - second), 0) / np.float32(blend)
    joined: Field = np.minimum(first, second) - overlap * overlap * np.float32(blend / 4)
    return joined


def carve(body: Field, tool: Field, blend: float) -> Field:
    """The body without the tool, with rounded edges."""
    return -union(-body, tool, blend)


def _cubic_weights(old: Field, new: Field) -> Field:
    distance = np.abs(new[:, None] - old[None, :]) / (old[1] - old[0])
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    scaled: Field = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled
