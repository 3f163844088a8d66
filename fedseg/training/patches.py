"""Training patches of one subject: balanced over its tissues, varied, reproducible from one generator.

A patch is described before it is cut: `draw` takes every random number, `cut` only computes. No patch mixes subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fedseg.errors import DataError
from fedseg.imaging.generation import draw_recipe, generate
from fedseg.training.augmentation import Image, Labels, Look, Shape, draw_look, place, vary_intensity

Voxel = TypeVar("Voxel", bound=np.generic)

FOREGROUND_CHANCE = 0.7
CANDIDATES_PER_CLASS = 10_000


class Labelled(Protocol):
    """What is cut from: an `imaging.transforms.Prepared`, or an image that was made up."""

    @property
    def image(self) -> Image:
        """float32 [X, Y, Z]; its least value is background."""

    @property
    def labels(self) -> Labels | None:
        """uint8 [X, Y, Z], classes."""


class MadeUp(NamedTuple):
    """One made-up image with its classes."""

    image: Image
    labels: Labels


@dataclass(frozen=True)
class Draw:
    """One patch before it is cut: which volume, its lowest corner there (may lie outside), and how it is varied."""

    volume: int
    corner: Shape
    look: Look


class SubjectVolumes:
    """All volumes of one subject, with candidate centres of each tissue so that a draw costs no search."""

    def __init__(self, volumes: Sequence[Labelled]) -> None:
        """Index the tissues of each volume.

        Raises:
            DataError: No volume, a volume without labels, or one whose image and labels differ in shape or aren't 3D.
        """
        if not volumes:
            raise DataError("a training subject has no volume")
        self._pairs = tuple(_checked(volume) for volume in volumes)
        self._centres = tuple(_centres(labels) for _, labels in self._pairs)
        self._outside = tuple(float(image.min()) for image, _ in self._pairs)

    @property
    def highest_label(self) -> int:
        """The largest class index in any volume."""
        return max(int(labels.max()) for _, labels in self._pairs)

    def made_up(self, rng: np.random.Generator, spacing_mm: float) -> SubjectVolumes:
        """One image made up from a label map of this subject, FeTA's tissues (`imaging.generation`)."""
        _, labels = self._pairs[int(rng.integers(len(self._pairs)))]
        return SubjectVolumes([MadeUp(*generate(labels, spacing_mm, draw_recipe(rng)))])

    def draw(self, rng: np.random.Generator, patch: Shape, *, augment: str) -> Draw:
        """Choose a patch: about a voxel of a random tissue present (chance 0.7), else anywhere.

        Args:
            rng: Decides everything.
            patch: The shape that `cut` will be asked for.
            augment: How much it is varied: `none`, `light` or `strong` (`augmentation`).
        """
        index = int(rng.integers(len(self._pairs)))
        shape, centres = self._pairs[index][0].shape, self._centres[index]
        if centres and rng.random() < FOREGROUND_CHANCE:
            tissue = centres[int(rng.integers(len(centres)))]
            centre = np.array(np.unravel_index(int(tissue[rng.integers(tissue.size)]), shape))
        else:
            centre = rng.integers(shape)
        corner = _corner(rng, centre, shape, patch)
        return Draw(index, corner, draw_look(rng, augment))

    def cut(self, draw: Draw, patch: Shape) -> tuple[Image, Labels]:
        """The patch that `draw` describes: image float32 and labels uint8, both of shape `patch`.

        What lies outside the volume is background: label 0 and the volume's lowest intensity.
        """
        (grey, truth), outside = self._pairs[draw.volume], self._outside[draw.volume]
        if draw.look.warp is None and not draw.look.bend:
            image = _window(grey, draw.corner, patch, outside)
            labels = _window(truth, draw.corner, patch, 0)
        else:
            image = place(grey, draw.corner, patch, draw.look, outside)
            labels = place(truth, draw.corner, patch, draw.look, 0)
        if draw.look.flip:
            image, labels = image[::-1], labels[::-1]
        return vary_intensity(image, labels, draw.look), np.ascontiguousarray(labels)


def _checked(volume: Labelled) -> tuple[Image, Labels]:
    if volume.labels is None:
        raise DataError("a training volume has no labels")
    if volume.image.ndim != 3 or volume.image.shape != volume.labels.shape:
        raise DataError("a training volume's image and labels differ in shape, or are not 3D")
    return volume.image, volume.labels


def _centres(labels: Labels) -> tuple[npt.NDArray[np.int64], ...]:
    """For each tissue present, evenly spaced flat indices of at most `CANDIDATES_PER_CLASS` of its voxels."""
    flat = labels.ravel()
    found = (np.flatnonzero(flat == tissue) for tissue in np.unique(flat) if tissue != 0)
    return tuple(where[:: -(-where.size // CANDIDATES_PER_CLASS)] for where in found)


def _corner(rng: np.random.Generator, centre: npt.NDArray[np.int64], shape: Sequence[int], patch: Shape) -> Shape:
    """Lowest corner: inside the volume where the patch fits, else anywhere that keeps the whole side inside."""
    free = rng.random(3)
    sides = zip(centre, shape, patch, free, strict=True)
    x, y, z = (int(np.clip(c - p // 2, 0, s - p)) if s >= p else -int(f * (p - s + 1)) for c, s, p, f in sides)
    return x, y, z


def _window(volume: npt.NDArray[Voxel], corner: Shape, patch: Shape, outside: float) -> npt.NDArray[Voxel]:
    out = np.full(patch, outside, dtype=volume.dtype)
    spans = [(max(c, 0), min(c + p, s)) for c, p, s in zip(corner, patch, volume.shape, strict=True)]
    inside = tuple(slice(low, high) for low, high in spans)
    target = tuple(slice(low - c, high - c) for (low, high), c in zip(spans, corner, strict=True))
    out[target] = volume[inside]
    return out
