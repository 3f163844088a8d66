"""Grey values: how they are stored, what lies around the head, whether fluid is bright."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging.foreground import Foreground
from fedseg.imaging.nifti import Fields, Volume
from fedseg.imaging.quality.finding import Remark
from fedseg.labels import BRAIN_MASK, LabelScheme

FEWEST_VALUES = 32
_SATURATED = 1e-3
_WRAPPED = 1e-4
_NEAR_LIMIT = 0.9
_BELOW_BACKGROUND = 0.02
_HEAVY_TAIL = 10.0

Values = NDArray[np.float32]


def check_intensities(
    image: Volume, fields: Fields, values: Values, foreground: Foreground, scheme: LabelScheme
) -> Iterator[Remark]:
    """All about the grey values of one scan.

    Args:
        image: The scan.
        fields: Its header as stored.
        values: All its grey values, sorted.
        foreground: Found on them.
        scheme: The study's scheme.
    """
    yield from _storage(image, fields, values)
    yield from _background(foreground, values, scheme)
    yield from _outliers(values, foreground)


def distinct(values: Values) -> int:
    """How many different values there are among sorted ones."""
    return 1 + int(np.count_nonzero(np.diff(values)))


def check_contrast(image: Volume, classes: NDArray[np.uint8], scheme: LabelScheme) -> Iterator[Remark]:
    """On T2-weighted scans of a fetus, fluid is brighter than the cortex.

    In all of 32 labelled atlas volumes of 21 to 37 weeks, the brighter of external CSF and ventricles has a median of
    1.5 to 3 times that of the cortical grey matter.
    """
    if scheme == BRAIN_MASK:
        return
    grey = {name: image.data[classes == scheme.index(name)] for name in ("external_csf", "ventricles")}
    cortex = image.data[classes == scheme.index("cortical_grey_matter")]
    fluid = [float(np.median(each)) for each in grey.values() if each.size]
    if fluid and cortex.size and max(fluid) <= float(np.median(cortex)):
        hint = "is it T1-weighted, inverted, or do the labels belong to another scan? T2-weighted scans are needed"
        yield Remark("contrast", "warning", "fluid is not brighter than the cortex", hint)


def _storage(image: Volume, fields: Fields, values: Values) -> Iterator[Remark]:
    """Scaling, saturation, wrap-around, and images that are none."""
    if fields.slope < 0:
        hint = "light and dark are exchanged, unless the stored values were inverted too: look at it in a viewer"
        yield Remark("scaling", "warning", "the header scales grey values by a negative factor", hint)
    count = distinct(values)
    if count < FEWEST_VALUES:
        hint = "is it a mask, or a label map under the name of the scan?"
        yield Remark("few-values", "error", f"the image has fewer than {FEWEST_VALUES} grey values", hint, f"{count}")
        return
    yield from _saturation(values)
    stored = np.dtype(image.dtype)
    if stored.kind == "i" and fields.slope == 1 and _wrapped(values, stored):
        hint = f"values beyond what {stored.name} holds have wrapped around: export as float32"
        yield Remark("overflow", "warning", "very bright and very dark voxels, and nothing between", hint)


def _saturation(values: Values) -> Iterator[Remark]:
    """Many voxels of the one largest value."""
    share = 1 - np.searchsorted(values, values[-1]) / values.size
    if share > _SATURATED:
        hint = "bright tissue was cut off when the scan was exported: export it with its full range"
        yield Remark("saturation", "warning", "many voxels have the largest grey value", hint, f"{share:.1%} of them")


def _wrapped(values: Values, stored: np.dtype[np.generic]) -> bool:
    """Whether values pile up at both ends of what the type holds."""
    limits = np.iinfo(stored)  # type: ignore[type-var]  # an integer type, by its kind
    low, high = np.searchsorted(values, (_NEAR_LIMIT * limits.min, _NEAR_LIMIT * limits.max))
    return bool(low > _WRAPPED * values.size and values.size - high > _WRAPPED * values.size)


def _background(foreground: Foreground, values: Values, scheme: LabelScheme) -> Iterator[Remark]:
    """Backgrounds that aren't zero, or that lie among the tissues' grey values."""
    if not foreground.constant:
        if scheme != BRAIN_MASK:
            hint = "mask the brain (or the head) for better results; the threshold is Otsu's"
            yield Remark("background-noise", "warning", "the background is not one value", hint)
        return
    below = np.searchsorted(values, np.float32(foreground.background - foreground.threshold)) / values.size
    if below > _BELOW_BACKGROUND:
        hint = "was it normalised already? give the scan as reconstructed"
        what = "tissue lies on both sides of the background's grey value"
        yield Remark("background-inside", "warning", what, hint, f"background {foreground.background:.3g}")
    elif foreground.background != 0:
        hint = "taken care of; `image > 0` is no brain mask for it"
        detail = f"{foreground.background:.3g}"
        yield Remark("background", "note", "the background is one value, but not 0", hint, detail)


def _outliers(values: Values, foreground: Foreground) -> Iterator[Remark]:
    """One voxel far above all others: viewers show such a scan as black."""
    high = float(values[int(0.999 * (values.size - 1))]) - foreground.background
    if high > 0 and float(values[-1]) - foreground.background > _HEAVY_TAIL * high:
        detail = f"{(float(values[-1]) - foreground.background) / high:.0f} times the 99.9th percentile"
        hint = "values are cut off at the foreground's 99.5th percentile here; viewers may show the scan as black"
        yield Remark("outliers", "note", "a few voxels are far brighter than all others", hint, detail)
