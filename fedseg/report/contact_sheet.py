"""A contact sheet: every scan of a site at a glance, three slices each, labels as outlines. Patient data."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.imaging.grids import nearest_axes
from fedseg.imaging.quality.finding import SEVERITIES, Finding, Severity
from fedseg.imaging.quality.scan import Scan
from fedseg.imaging.resampling import box
from fedseg.labels import LabelScheme, color, display_name
from fedseg.report.page import template
from fedseg.report.png import encode_rgb

SIDE = 150
_MARGIN_MM = 8.0
_PLANES = (2, 1, 0)


@dataclass(frozen=True)
class Tile:
    """One scan.

    Args:
        name: The scan's name.
        facts: Axes, shape, voxel size and age, in a line.
        picture: Its slices as a PNG, or None where it can't be read.
        findings: What was found, each once, errors first; notes are left out.
    """

    name: str
    facts: str
    picture: bytes | None
    findings: tuple[Finding, ...]

    @property
    def severity(self) -> Severity:
        """The worst there is: `error`, `warning`, or `note` where nothing is wrong."""
        return next((each.severity for each in self.findings), "note")


class ContactSheet:
    """Tiles, added one by one.

    Args:
        title: The data set's name.
        scheme: What the labels mean.
    """

    def __init__(self, title: str, scheme: LabelScheme) -> None:
        self._title, self._scheme = title, scheme
        self.tiles: list[Tile] = []

    def add(self, scan: Scan, findings: Sequence[Finding]) -> None:
        """Draw a scan; its voxels are not kept."""
        drawn = None if scan.image is None else encode_rgb(slices(scan, self._scheme))
        told = {(each.severity, each.what, each.detail): each for each in findings if each.severity != "note"}
        self.tiles.append(Tile(scan.case.name, _facts(scan), drawn, tuple(told.values())))

    def html(self) -> str:
        """One page that loads nothing, worst scans first."""
        tiles = sorted(self.tiles, key=lambda tile: (SEVERITIES.index(tile.severity), tile.name))
        legend = [(display_name(tissue), color(tissue)) for tissue in self._scheme.tissues]
        rows = [(tile, "" if tile.picture is None else base64.b64encode(tile.picture).decode()) for tile in tiles]
        return template("contact_sheet.html.j2").render(title=self._title, rows=rows, legend=legend)


def slices(scan: Scan, scheme: LabelScheme) -> NDArray[np.uint8]:
    """Axial, coronal and sagittal slice side by side, [SIDE, 3 SIDE, 3], all at one scale.

    Through the middle of the labels, else of the foreground. Up is anterior (axial) or superior; patient's left is on
    the right, as radiologists look at it; in the sagittal slice anterior is on the left.
    """
    if scan.image is None:
        raise ValueError("a scan without an image has no slices")
    axes, flips = nearest_axes(scan.image.affine)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    spacing = [scan.image.spacing_mm[axis] for axis in axes]
    grey = np.asarray(scan.image.data, dtype=np.float32).transpose(axes)[steps]
    same = scan.classes is not None and scan.classes.shape == scan.image.data.shape
    classes = scan.classes.transpose(axes)[steps] if same and scan.classes is not None else None
    bounds = _bounds(grey, classes, scan, spacing)
    window = _window(grey[bounds])
    middle = [(part.start + part.stop) // 2 for part in bounds]
    reach = max((part.stop - part.start) * size for part, size in zip(bounds, spacing, strict=True)) / 2
    drawn = [_plane(grey, classes, axis, middle, spacing, reach, window, scheme) for axis in _PLANES]
    return np.concatenate(drawn, axis=1)


def _bounds(
    grey: NDArray[np.float32], classes: NDArray[np.uint8] | None, scan: Scan, spacing: Sequence[float]
) -> tuple[slice, slice, slice]:
    """What is shown: the labels with a margin, else the foreground."""
    margin = [round(_MARGIN_MM / size) for size in spacing]
    if classes is not None and classes.any():
        return box(classes > 0, margin)
    return box(scan.foreground.mask(grey) if scan.foreground is not None else grey > grey.min(), (0, 0, 0))


def _window(grey: NDArray[np.float32]) -> tuple[float, float]:
    """Grey values shown as black and white."""
    low, high = np.percentile(grey, (1, 99.5))
    return float(low), float(max(high, low + 1e-12))


def _plane(
    grey: NDArray[np.float32],
    classes: NDArray[np.uint8] | None,
    axis: int,
    middle: Sequence[int],
    spacing: Sequence[float],
    reach: float,
    window: tuple[float, float],
    scheme: LabelScheme,
) -> NDArray[np.uint8]:
    """One slice [SIDE, SIDE, 3]: grey interpolated, outlines of the classes in their colours."""
    across, up = (each for each in range(3) if each != axis)
    at_mm = np.linspace(reach, -reach, SIDE)
    rows, columns = (middle[each] + at_mm / spacing[each] for each in (up, across))
    places = np.stack(np.meshgrid(columns, rows, indexing="xy"))
    values = ndimage.map_coordinates(np.take(grey, middle[axis], axis=axis), places, order=1, cval=window[0])
    shade = np.clip((values - window[0]) / (window[1] - window[0]) * 255, 0, 255).astype(np.uint8)
    picture = np.repeat(shade[..., None], 3, axis=2)
    if classes is not None:
        flat = ndimage.map_coordinates(np.take(classes, middle[axis], axis=axis), places, order=0)
        highest = ndimage.maximum_filter(flat, 2)
        line = highest != ndimage.minimum_filter(flat, 2)
        palette = np.array([(0, 0, 0), *(tuple(bytes.fromhex(color(each)[1:])) for each in scheme.tissues)], np.uint8)
        picture[line] = palette[highest[line]]
    return picture


def _facts(scan: Scan) -> str:
    if scan.image is None:
        return "cannot be read"
    image, age = scan.image, scan.case.gestational_age_weeks
    shape = " x ".join(map(str, image.data.shape))
    sizes = " x ".join(f"{size:.3g}" for size in image.spacing_mm)
    weeks = "" if age is None else f", {age:.3g} weeks"
    return f"{image.axes}, {shape} voxels of {sizes} mm{weeks}"
