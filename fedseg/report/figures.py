"""Pictures of a segmented brain as layers over each other: grey once, then outlines and errors, in three planes.

The grey planes keep the scan's own voxels where there is room, the outlines are finer: a line on the scan's own grid
would be as wide as the cortex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.errors import DataError
from fedseg.labels import color
from fedseg.report.planes import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Place,
    Upright,
    grown_box,
    middle,
    position,
    seen,
    worst_place,
)
from fedseg.report.png import encode_grey, encode_indexed

CAPTION = (
    "Columns: axial, coronal, sagittal; the patient's right is on the left of the picture (radiological convention). "
    "Rows: the scan; the prediction's outlines, each in the colour of the inner tissue, over the reference's in white, "
    "which is seen only where the two part; the voxels that differ. The largest error is where the most voxels differ "
    "within 9 mm. Places are in the scanner's coordinates: mm to the right, to the front and up."
)
MAX_BYTES = 110_000
"""Most bytes of a picture's layers; in the page base64 makes a third more of them."""

ERRORS = {"missed": "#E8392B", "extra": "#6CC5FF", "other tissue": "#FFE38A"}
"""What can be wrong with a voxel: only the reference has a tissue, only the prediction has, or they differ in it."""

_Image = NDArray[np.generic]
_Labels = NDArray[np.integer[Any]]
_Classes = NDArray[np.uint8]
_Levels = NDArray[np.floating[Any]]
_Edges = tuple[float, float]

_SHADES = 51  # a third of the bits are a scanner's noise, and half the file
_SIZES = (1.0, 0.8, 0.62, 0.48, 0.37, 0.28)
_OUTLINE_PIXELS = 1000  # across the three planes of a view: two to a pixel of the page
_GREY_PIXELS = 420  # the same for grey: a brain of 37 weeks at 0.8 mm
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """One plane.

    Args:
        name: What the plane is called.
        sides: What lies left and right in the picture, one letter each.
        extent_mm: Width and height.
        cross: The place of the view, as shares of width and height from the top left.
        grey: PNG of the scan.
        outlines: PNG of the outlines, transparent elsewhere.
        errors: PNG of the voxels that differ, transparent elsewhere; None without a reference.
    """

    name: str
    sides: tuple[str, str]
    extent_mm: tuple[float, float]
    cross: tuple[float, float]
    grey: bytes
    outlines: bytes
    errors: bytes | None

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return len(self.grey) + len(self.outlines) + len(self.errors or b"")


@dataclass(frozen=True)
class View:
    """Axial, coronal and sagittal plane through one place.

    Args:
        name: What the place is.
        place_mm: Where it is in the scanner's coordinates: right, anterior, superior.
        panels: The three planes.
    """

    name: str
    place_mm: tuple[float, float, float]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Picture:
    """What there is to see of one scan.

    Args:
        views: Through the middle, and through the largest error where there is one.
        errors_ml: Volume of each kind of `ERRORS`; None without a reference.
    """

    views: tuple[View, ...]
    errors_ml: dict[str, float] | None

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(panel.size for view in self.views for panel in view.panels)


@dataclass(frozen=True)
class _Scene:
    """One scan cropped to its brain, upright."""

    grey: _Image
    truth: _Classes | None
    predicted: _Classes
    wrong: _Classes | None
    spacing_mm: tuple[float, float, float]
    window: tuple[float, float]
    palette: tuple[tuple[int, int, int], ...]


def overlay(
    image: _Image,
    labels_true: _Labels | None,
    labels_pred: _Labels,
    affine: NDArray[np.floating[Any]],
    tissues: Sequence[str],
) -> Picture:
    """The pictures of one scan, cropped to the brain; see `CAPTION`.

    Args:
        image: Grey values, (i, j, k), on the scan's own grid.
        labels_true: Reference classes on the same grid, if there are any.
        labels_pred: Predicted classes on the same grid.
        affine: Voxels to mm right, anterior and superior, (4, 4); it turns the brain upright. An oblique scan is
            shown along its own nearest axes.
        tissues: Names of the classes 1..C; `fedseg.labels` has their colours.

    Returns:
        Layers of at most `MAX_BYTES` in all: the noisier the scan, the coarser they are.

    Raises:
        DataError: Arrays of different shapes.
    """
    labels = [each for each in (labels_true, labels_pred) if each is not None]
    if image.ndim != 3 or any(each.shape != image.shape for each in labels):
        raise DataError(f"scan and labels are not volumes of one shape: {image.shape}, {labels_pred.shape}")
    upright = Upright.of(affine)
    turned = [np.ascontiguousarray(upright.turn(each), dtype=np.uint8) for each in labels]
    scene, start = _scene(upright.turn(image), turned, upright.spacing_mm, tissues)
    places = _places(scene)
    for scale in _SIZES:
        picture = Picture(
            tuple(
                View(name, _position_mm(place, start, upright, image.shape, affine), _panels(scene, place, scale))
                for name, place in places.items()
            ),
            _volumes(scene),
        )
        if picture.size <= MAX_BYTES:
            break
    return picture


def _scene(
    image: _Image, labels: list[_Classes], spacing_mm: tuple[float, float, float], tissues: Sequence[str]
) -> tuple[_Scene, Place]:
    """The crop, and its first voxel."""
    found = np.logical_or.reduce([each > 0 for each in labels])
    brain = found.any()
    if not brain:
        found = np.nan_to_num(np.asarray(image, dtype=np.float64)) > 0
    box = grown_box(found, spacing_mm)
    truth = labels[0][box] if len(labels) == 2 else None
    predicted = labels[-1][box]
    grey = image[box]
    scene = _Scene(
        grey=grey,
        truth=truth,
        predicted=predicted,
        wrong=None if truth is None else _kinds(truth, predicted),
        spacing_mm=spacing_mm,
        window=_window(grey, found[box] if brain else None),
        palette=tuple(_rgb(color(tissue)) for tissue in tissues),
    )
    return scene, (box[0].start or 0, box[1].start or 0, box[2].start or 0)


def _kinds(truth: _Classes, predicted: _Classes) -> _Classes:
    """0 where the two agree, else 1 plus the place in `ERRORS`."""
    kinds = np.zeros(truth.shape, np.uint8)
    wrong = truth != predicted
    kinds[wrong] = 3
    kinds[wrong & (predicted == 0)] = 1
    kinds[wrong & (truth == 0)] = 2
    return kinds


def _volumes(scene: _Scene) -> dict[str, float] | None:
    if scene.wrong is None:
        return None
    counts = np.bincount(scene.wrong.ravel(), minlength=len(ERRORS) + 1)[1:]
    return {name: float(count * np.prod(scene.spacing_mm) / 1000) for name, count in zip(ERRORS, counts, strict=True)}


def _places(scene: _Scene) -> dict[str, Place]:
    """The middle of the brain, and the worst place where there is one."""
    brain = scene.predicted > 0 if scene.truth is None or not scene.truth.any() else scene.truth > 0
    places = {"Through the middle": middle(brain)}
    worst = None if scene.wrong is None else worst_place(scene.wrong > 0, scene.spacing_mm)
    return places if worst is None else places | {"Through the largest error": worst}


def _position_mm(
    place: Place, start: Place, upright: Upright, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]
) -> tuple[float, float, float]:
    """The place in the scanner's coordinates."""
    first, second, third = (at + begin for at, begin in zip(place, start, strict=True))
    right, anterior, superior = (affine @ (*upright.stored((first, second, third), shape), 1.0))[:3]
    return float(right), float(anterior), float(superior)


def _panels(scene: _Scene, place: Place, scale: float) -> tuple[Panel, ...]:
    extents = [edge * size for edge, size in zip(scene.spacing_mm, scene.grey.shape, strict=True)]
    width_mm = 2 * extents[0] + extents[1]
    named = ((AXIAL, "axial", ("R", "L")), (CORONAL, "coronal", ("R", "L")), (SAGITTAL, "sagittal", ("A", "P")))
    return tuple(_panel(scene, axis, place, name, sides, width_mm / scale) for axis, name, sides in named)


def _panel(scene: _Scene, axis: int, place: Place, name: str, sides: tuple[str, str], width_mm: float) -> Panel:
    """One plane; `width_mm` is what the most pixels of a layer span."""
    across, up = (scene.spacing_mm[each] for each in range(3) if each != axis)
    edges = (up, across)
    grey = _finer(_levels(seen(scene.grey, axis, place), scene.window), edges, width_mm / _GREY_PIXELS, order=1)
    rows, columns = seen(scene.predicted, axis, place).shape
    return Panel(
        name=name,
        sides=sides,
        extent_mm=(columns * across, rows * up),
        cross=position(scene.grey.shape, axis, place),
        grey=encode_grey(np.round(grey * _SHADES).astype(np.uint8) * np.uint8(255 // _SHADES)),
        outlines=_outlines(scene, axis, place, edges, width_mm / _OUTLINE_PIXELS),
        errors=_errors(scene, axis, place, edges, width_mm / _GREY_PIXELS),
    )


def _errors(scene: _Scene, axis: int, place: Place, edges: _Edges, pitch: float) -> bytes | None:
    if scene.wrong is None:
        return None
    kinds = _finer(seen(scene.wrong, axis, place), edges, pitch, order=0)
    return encode_indexed(kinds, [_rgb(each) for each in ERRORS.values()])


def _outlines(scene: _Scene, axis: int, place: Place, edges: _Edges, pitch: float) -> bytes:
    """The prediction's outlines in the inner tissue's colour, over the reference's in white."""
    white = len(scene.palette) + 1
    lines = _inner(_resampled(seen(scene.predicted, axis, place), edges, (pitch, pitch), order=0))
    if scene.truth is not None:
        reference = _inner(_resampled(seen(scene.truth, axis, place), edges, (pitch, pitch), order=0))
        lines[(lines == 0) & (reference > 0)] = white
    return encode_indexed(lines, (*scene.palette, _WHITE))


def _inner(labels: _Classes) -> _Classes:
    """Lines two pixels wide where classes meet: the highest class there, since the scheme goes from outside inwards."""
    highest: _Classes = ndimage.maximum_filter(labels, 3, mode="constant")
    lowest: _Classes = ndimage.minimum_filter(labels, 3, mode="constant")
    return np.where(highest != lowest, highest, np.uint8(0))


def _finer(plane: NDArray[Any], edges: _Edges, pitch: float, order: Literal[0, 1]) -> NDArray[Any]:
    """The plane on its own pixels where they are as large as `pitch`, else on pixels of that size."""
    if min(edges) >= pitch:
        return plane
    return _resampled(plane, edges, (max(edges[0], pitch), max(edges[1], pitch)), order)


def _resampled(plane: NDArray[Any], edges: _Edges, pitch: _Edges, order: Literal[0, 1]) -> NDArray[Any]:
    """The plane on pixels of another size, over the same extent; `order` 0 takes the nearest, 1 interpolates."""
    rows, columns = (
        np.clip((np.arange(max(1, round(count * edge / step))) + 0.5) * step / edge - 0.5, 0, count - 1)
        for count, edge, step in zip(plane.shape, edges, pitch, strict=True)
    )
    if order == 0:
        nearest: NDArray[Any] = plane[np.ix_(np.round(rows).astype(np.intp), np.round(columns).astype(np.intp))]
        return nearest
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    found: NDArray[Any] = ndimage.map_coordinates(plane, grid, order=1)
    return found


def _window(grey: _Image, brain: NDArray[np.bool_] | None) -> tuple[float, float]:
    """The grey values shown as black and white: the darkest and brightest hundredth of the brain are cut off.

    Where no brain was found, of all that is brighter than the darkest.
    """
    thin = (slice(None, None, 2),) * 3 if grey.size > 1e5 else ...
    values = np.nan_to_num(np.asarray(grey[thin], dtype=np.float64))
    shown = values[brain[thin]] if brain is not None else values[values > values.min()] if values.size else values
    if not shown.size:
        return 0.0, 1.0
    low, high = np.percentile(shown, (1, 99))
    return float(low), float(high)


def _levels(grey: _Image, window: tuple[float, float]) -> _Levels:
    """Grey from 0 to 1."""
    values = np.nan_to_num(np.asarray(grey, dtype=np.float64))
    low, high = window
    levels: _Levels = np.clip((values - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    return levels


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
