"""What a quality flag is, and those of the grid that a scan lies on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedseg.imaging.nifti import Volume, nib
from fedseg.imaging.quality.geometry import (
    ANISOTROPY,
    OBLIQUE_DEGREES,
    SHEAR_DEGREES,
    SHEAR_HINT,
    SHEARED,
    SPACING_MM,
    shear_degrees,
)
from fedseg.labels import BRAIN_MASK, LabelScheme

Severity = Literal["error", "warning", "note"]

POSSIBLE_SPACING_MM = (0.1, 10.0)


@dataclass(frozen=True)
class Flag:
    """One thing to know about one segmentation.

    Args:
        kind: Which check: `empty`, `partial`, `cut`, `components`, `holes`, `missing_tissue`, `spacing`, `axes`,
            `asymmetry`, `volume`, `uncertainty` or `intensities`.
        severity: `error`: not usable as it is; `warning`: a person should look; `note`: for information, or not
            checked.
        what: What was found, with numbers and units; or why it was not checked.
        hint: What to do about it, or an empty text.
    """

    kind: str
    severity: Severity
    what: str
    hint: str = ""


def grid_flags(image: Volume, scheme: LabelScheme) -> Iterator[Flag]:
    """Flags of the scan's grid alone: voxel size, shear, obliqueness, forms that disagree."""
    yield from _spacing(image, scheme)
    yield from _axes(image)


def _spacing(image: Volume, scheme: LabelScheme) -> Iterator[Flag]:
    least, most = min(image.spacing_mm), max(image.spacing_mm)
    sizes = " x ".join(f"{size:.3g}" for size in image.spacing_mm)
    if not POSSIBLE_SPACING_MM[0] <= least <= most <= POSSIBLE_SPACING_MM[1]:
        yield Flag("spacing", "error", f"impossible voxel size: {sizes} mm", "is the header in metres or micrometres?")
    elif most / least > ANISOTROPY:
        severity: Severity = "note" if scheme == BRAIN_MASK else "warning"
        yield Flag("spacing", severity, f"voxels are not cubes: {sizes} mm", "is it a reconstruction, or a stack?")
    elif not SPACING_MM[0] <= least <= most <= SPACING_MM[1]:
        yield Flag("spacing", "warning", f"odd voxel size: {sizes} mm", "reconstructions have 0.5 to 1 mm")


def _axes(image: Volume) -> Iterator[Flag]:
    """Shear, obliqueness, and forms that disagree."""
    shear = shear_degrees(image)
    if shear > SHEAR_DEGREES:
        yield Flag("axes", "warning", f"{SHEARED}, but off by {shear:.1f} degrees", SHEAR_HINT)
    angle = float(np.degrees(np.max(nib.affines.obliquity(image.affine))))
    if angle > OBLIQUE_DEGREES:
        what = f"the axes are oblique by {angle:.0f} degrees; the network saw the brain tilted"
        yield Flag("axes", "warning", what, "reconstruct in, or register to, a standard orientation")
    if not image.forms_agree:
        what = "qform and sform place the scan differently; the sform is used"
        yield Flag("axes", "warning", what, "check left and right in a viewer")
