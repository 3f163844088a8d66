"""The slow change of brightness that a coil leaves across a scan, and its removal."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from fedseg.imaging import resampling

sitk: Any = SimpleITK  # it has no types

FITTED_MM = 4.0
"""Voxel size that the field is fitted at."""

ITERATIONS = (20, 20, 20)
"""At most so many on each level of detail; the control points are twice as dense on each."""

_FEWEST = 4


def without_bias(
    grey: NDArray[np.float32], mask: NDArray[np.bool_], background: float, spacing_mm: float
) -> NDArray[np.float32]:
    """Divide by the field that N4 finds (Tustison et al. 2010, IEEE Trans. Med. Imaging 29:1310; SimpleITK's filter).

    The field is fitted inside the mask on voxels of 4 mm and applied to every voxel, on one thread: the same input
    gives the same bits.

    Args:
        grey: float32 [X, Y, Z].
        mask: bool [X, Y, Z], the foreground.
        background: Grey value of the background, which stays what it is.
        spacing_mm: Voxel size.

    Returns:
        float32 [X, Y, Z]; the input itself where the mask is empty or too small to fit a field in.
    """
    shape = tuple(max(1, round(size * spacing_mm / FITTED_MM)) for size in grey.shape)
    if min(shape) < _FEWEST or not mask.any():
        return grey
    bright = np.maximum(grey - np.float32(background), 0)
    small = resampling.apply(_between(grey.shape, shape), bright * mask)
    share = resampling.apply(_between(grey.shape, shape), mask.astype(np.float32))
    inside = share > 0.5
    if not inside.any():
        return grey
    mean = np.asarray(small / np.maximum(share, 0.5), dtype=np.float32)
    field = _fitted(mean, inside, FITTED_MM)
    log_field = resampling.apply(_between(shape, grey.shape), field)
    return np.asarray(np.float32(background) + (grey - np.float32(background)) / np.exp(log_field), dtype=np.float32)


def _fitted(grey: NDArray[np.float32], inside: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.float32]:
    """Logarithm of the field, mean 0 inside the mask: overall brightness stays."""
    image, mask = _as_sitk(np.maximum(grey, np.float32(1e-3) * grey.max()), spacing_mm), _as_sitk(inside, spacing_mm)
    filtered = sitk.N4BiasFieldCorrectionImageFilter()
    filtered.SetMaximumNumberOfIterations(ITERATIONS)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        filtered.Execute(image, mask)
        field = sitk.GetArrayFromImage(filtered.GetLogBiasFieldAsImage(image)).astype(np.float32)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return np.asarray(field - field[inside].mean(), dtype=np.float32)


def _as_sitk(volume: NDArray[np.float32] | NDArray[np.bool_], spacing_mm: float) -> Any:
    image = sitk.GetImageFromArray(volume.astype(np.uint8) if volume.dtype == np.bool_ else volume)
    image.SetSpacing([spacing_mm] * 3)
    return image


def _between(old: tuple[int, ...], new: tuple[int, ...]) -> resampling.Matrices:
    """From one grid to another over the same extent."""
    first, second, third = (
        resampling.weights(resampling.centres(to, of / to, of), of / to, of) for of, to in zip(old, new, strict=True)
    )
    return (first, second, third)
