"""Pictures of a segmented brain: grey, truth and prediction, one above the other, in three planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.errors import DataError
from fedseg.labels import color
from fedseg.report.png import encode_rgb

CAPTION = (
    "Rows: scan, reference where there is one, prediction. Columns: axial, coronal, sagittal. "
    "The patient's right is on the left, anterior is on the left in the sagittal plane."
)
MAX_BYTES = 150_000

_Image = NDArray[np.generic]
_Labels = NDArray[np.integer[Any]]
_Picture = NDArray[np.uint8]
_Box = tuple[slice, slice, slice]

_MARGIN_MM = 6.0
_SIZES = (220, 180, 140, 100, 70)
_GAP = 4
_OPACITY = 0.55
_SHADES = 51  # a third of the bits are a scanner's noise, and half the file
_AXIAL, _CORONAL, _SAGITTAL = 2, 1, 0


@dataclass(frozen=True)
class _Slice:
    """One plane of one scan: arrays of rows and columns as seen, and the voxel's edges along them."""

    grey: NDArray[np.float64]
    labels: tuple[_Labels, ...]
    edges_mm: tuple[float, float]

    @property
    def extent_mm(self) -> tuple[float, float]:
        return self.grey.shape[0] * self.edges_mm[0], self.grey.shape[1] * self.edges_mm[1]


@dataclass(frozen=True)
class _Upright:
    """How a scan's axes become right, anterior, superior: which axis comes first, and which are reversed."""

    axes: tuple[int, ...]
    steps: tuple[int, ...]
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, affine: NDArray[np.floating[Any]]) -> _Upright:
        """The nearest turn by right angles."""
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        cosines = affine[:3, :3] / edges
        axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[way, order[way]]) for way in range(3)))
        steps = tuple(1 if cosines[way, axes[way]] > 0 else -1 for way in range(3))
        first, second, third = (float(edges[axis]) for axis in axes)
        return cls(axes, steps, (first, second, third))

    def turn(self, volume: NDArray[Any]) -> NDArray[Any]:
        return volume.transpose(self.axes)[tuple(slice(None, None, step) for step in self.steps)]


def overlay_png(
    image: _Image,
    labels_true: _Labels | None,
    labels_pred: _Labels,
    affine: NDArray[np.floating[Any]],
    tissues: Sequence[str],
) -> bytes:
    """A small PNG of one subject, cropped to the brain, through the middle of its labels; see `CAPTION`.

    Args:
        image: Grey values, (i, j, k), on the scan's own grid.
        labels_true: Reference classes on the same grid, if there are any.
        labels_pred: Predicted classes on the same grid.
        affine: Voxels to mm right, anterior and superior, (4, 4); it turns the brain upright. An oblique scan is
            shown along its own nearest axes.
        tissues: Names of the classes 1..C; `fedseg.labels` has their colours.

    Returns:
        A PNG of at most `MAX_BYTES`: the noisier the scan, the smaller its panels.

    Raises:
        DataError: Arrays of different shapes.
    """
    labels = (labels_pred,) if labels_true is None else (labels_true, labels_pred)
    if image.ndim != 3 or any(each.shape != image.shape for each in labels):
        raise DataError(f"scan and labels are not volumes of one shape: {image.shape}, {labels_pred.shape}")
    upright = _Upright.of(affine)
    slices = _slices(upright.turn(image), tuple(upright.turn(each) for each in labels), upright.spacing_mm)
    palette = _palette(tissues)
    for size in _SIZES:
        png = encode_rgb(_compose(slices, palette, size))
        if len(png) <= MAX_BYTES:
            break
    return png


def _slices(image: _Image, labels: tuple[_Labels, ...], spacing_mm: tuple[float, float, float]) -> list[_Slice]:
    """The three planes through the middle of the labels, cropped."""
    found = np.logical_or.reduce([each > 0 for each in labels])
    if not found.any():
        found = np.nan_to_num(np.asarray(image, dtype=np.float64)) > 0
    box = _grown_box(found, spacing_mm)
    grey = _windowed(image[box])
    cropped = tuple(each[box] for each in labels)
    centre = _centre(found[box])
    return [
        _Slice(
            grey=_seen(grey, axis, centre),
            labels=tuple(_seen(each, axis, centre) for each in cropped),
            edges_mm=tuple(np.delete(np.asarray(spacing_mm, dtype=float), axis)[::-1]),
        )
        for axis in (_AXIAL, _CORONAL, _SAGITTAL)
    ]


def _grown_box(found: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> _Box:
    """The box around what was found with a margin; everything where nothing was."""
    boxes = ndimage.find_objects(found.astype(np.uint8))
    if not boxes:
        return slice(None), slice(None), slice(None)
    margins = [round(_MARGIN_MM / edge) for edge in spacing_mm]
    first, second, third = (
        slice(max(0, side.start - margin), side.stop + margin) for side, margin in zip(boxes[0], margins, strict=True)
    )
    return first, second, third


def _centre(found: NDArray[np.bool_]) -> tuple[int, ...]:
    """The voxel in the middle of what was found."""
    if not found.any():
        return tuple(size // 2 for size in found.shape)
    return tuple(round(float(at)) for at in ndimage.center_of_mass(found))


def _windowed(image: _Image) -> NDArray[np.float64]:
    """Grey values from 0 to 1, the darkest and brightest hundredth of the foreground cut off."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    foreground = values[values > values.min()] if values.size else values
    if not foreground.size:
        return np.zeros(values.shape)
    low, high = np.percentile(foreground, (1, 99))
    scaled: NDArray[np.float64] = np.clip((values - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    return scaled


def _seen(volume: NDArray[Any], axis: int, centre: tuple[int, ...]) -> NDArray[Any]:
    """One plane as it is looked at: up is superior (axial: anterior), left is right (sagittal: anterior)."""
    seen: NDArray[Any] = np.take(volume, centre[axis], axis=axis).T[::-1, ::-1]
    return seen


def _palette(tissues: Sequence[str]) -> NDArray[np.float64]:
    """RGB from 0 to 1 of each class; background black."""
    colours = [[int(color(tissue)[at : at + 2], 16) for at in (1, 3, 5)] for tissue in tissues]
    return np.array([[0, 0, 0], *colours]) / 255.0


def _compose(slices: Sequence[_Slice], palette: NDArray[np.float64], size: int) -> _Picture:
    """Planes side by side, rows of grey and labels below each other, all to one scale."""
    mm = max(max(each.extent_mm) for each in slices) / size
    columns = [_stack(_rows(each, palette, mm), axis=0) for each in slices]
    return _stack(columns, axis=1)


def _rows(plane: _Slice, palette: NDArray[np.float64], mm: float) -> list[_Picture]:
    """The grey plane, then the same under each label map's colours, on square pixels of `mm`."""
    rows, columns = _places(plane, mm)
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    grey: NDArray[np.float64] = ndimage.map_coordinates(plane.grey, grid, order=1, mode="nearest")
    grey = np.repeat(grey[..., None], 3, axis=2)
    nearest = np.ix_(np.round(rows).astype(np.intp), np.round(columns).astype(np.intp))
    return [_rgb(grey), *(_rgb(_tinted(grey, labels[nearest], palette)) for labels in plane.labels)]


def _tinted(grey: NDArray[np.float64], classes: _Labels, palette: NDArray[np.float64]) -> NDArray[np.float64]:
    opacity = np.where(classes > 0, _OPACITY, 0.0)[..., None]
    tinted: NDArray[np.float64] = (1 - opacity) * grey + opacity * palette[classes]
    return tinted


def _places(plane: _Slice, mm: float) -> list[NDArray[np.float64]]:
    """Where the middle of every pixel row and column lies, in voxels, inside the plane."""
    return [
        np.clip((np.arange(max(1, round(count * edge / mm))) + 0.5) * mm / edge - 0.5, 0, count - 1)
        for count, edge in zip(plane.grey.shape, plane.edges_mm, strict=True)
    ]


def _rgb(picture: NDArray[np.float64]) -> _Picture:
    return np.round(picture * _SHADES).astype(np.uint8) * np.uint8(255 // _SHADES)


def _stack(pictures: Sequence[_Picture], axis: int) -> _Picture:
    """Pictures one after another on black, centred, with a gap between."""
    across = 1 - axis
    width = max(each.shape[across] for each in pictures)
    padded = []
    for number, each in enumerate(pictures):
        room = width - each.shape[across]
        padding = [(0, 0)] * 3
        padding[across] = (room // 2, room - room // 2)
        padding[axis] = (_GAP if number else 0, 0)
        padded.append(np.pad(each, padding))
    return np.concatenate(padded, axis=axis)
