"""Where a scan lies: forms, axes, voxel sizes, units."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedseg.imaging.nifti import Fields, Volume, nib
from fedseg.imaging.quality.finding import Remark, Severity
from fedseg.labels import BRAIN_MASK, LabelScheme

SPACING_MM = (0.3, 1.5)
ANISOTROPY = 1.2
OBLIQUE_DEGREES = 20.0
SHEAR_DEGREES = 1.0
SHEARED = "the axes are not at right angles"
SHEAR_HINT = "the tilt is ignored here, so shapes are distorted: resample the scan to a grid with right angles"
_PIXDIM_SHARE = 0.01


def check_geometry(image: Volume, fields: Fields, scheme: LabelScheme, spacing_mm: float) -> Iterator[Remark]:
    """All about the header of a scan that was not refused when it was read.

    Args:
        image: The scan.
        fields: Its header as stored.
        scheme: The study's scheme: the brain mask may have thick slices.
        spacing_mm: The network's voxel size.
    """
    yield from _spacing(image, scheme, spacing_mm)
    yield from _units(image, fields)
    yield from _axes(image)
    if not image.forms_agree:
        hint = "the sform is used; check left and right in a viewer"
        yield Remark("forms", "warning", "qform and sform place the scan differently", hint)


def _spacing(image: Volume, scheme: LabelScheme, spacing_mm: float) -> Iterator[Remark]:
    least, most = min(image.spacing_mm), max(image.spacing_mm)
    if most / least > ANISOTROPY:
        severity: Severity = "note" if scheme == BRAIN_MASK else "warning"
        hint = "thick slices will do for a brain mask" if scheme == BRAIN_MASK else "is it a reconstruction?"
        yield Remark("anisotropy", severity, "voxels are not cubes", hint, _sizes(image.spacing_mm))
    elif not SPACING_MM[0] <= least <= most <= SPACING_MM[1]:
        hint = f"reconstructions have 0.5 to 1 mm; the network works at {spacing_mm:g} mm"
        yield Remark("spacing", "warning", "odd voxel size", hint, _sizes(image.spacing_mm))


def _units(image: Volume, fields: Fields) -> Iterator[Remark]:
    """The header's unit, and its own field of the voxel size, which some viewers go by."""
    if fields.length_mm not in (None, 1.0):
        what = f"the header gives lengths in {'metres' if fields.length_mm == 1000 else 'micrometres'}"
        hint = "taken for millimetres, as all tools do; set the unit right (xyzt_units)"
        yield Remark("unit", "warning", what, hint, _sizes(image.spacing_mm))
    apart = np.abs(np.abs(fields.pixdim) / np.array(image.spacing_mm) - 1)
    if not (apart <= _PIXDIM_SHARE).all():
        hint = "the affine counts here, other tools go by pixdim: convert the scan again"
        detail = f"pixdim {_sizes(fields.pixdim)}, affine {_sizes(image.spacing_mm)}"
        yield Remark("pixdim", "warning", "pixdim and affine give different voxel sizes", hint, detail)


def _axes(image: Volume) -> Iterator[Remark]:
    """Obliqueness, shear, handedness."""
    shear = shear_degrees(image)
    if shear > SHEAR_DEGREES:
        yield Remark("shear", "warning", SHEARED, SHEAR_HINT, f"off by {shear:.1f} degrees")
    angle = float(np.degrees(np.max(nib.affines.obliquity(image.affine))))
    if angle > OBLIQUE_DEGREES:
        hint = "turned to its nearest axes only: reconstruct in, or register to, a standard orientation"
        yield Remark("oblique", "warning", "the axes are oblique", hint, f"by {angle:.0f} degrees")
    if np.linalg.det(image.affine[:3, :3]) < 0:
        hint = "all are turned to RAS; results come back as stored"
        yield Remark("left-handed", "note", "the axes are left-handed", hint, image.axes)


def shear_degrees(image: Volume) -> float:
    """How far the axes are from right angles, at most."""
    columns = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    cosine = float(np.abs(columns.T @ columns - np.eye(3)).max())
    return float(np.degrees(np.arcsin(min(1.0, cosine))))


def _sizes(sizes: tuple[float, float, float]) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes) + " mm"
