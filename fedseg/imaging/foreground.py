"""What of a scan is head, or brain where it is stripped, and what is around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEAR = 0.25


@dataclass(frozen=True)
class Foreground:
    """What tells the head (or the brain, where it is stripped) from what is around it.

    Args:
        background: The grey value around.
        threshold: Distance from it, in grey values, beyond which a voxel is foreground.
        constant: True where the background is one value (stripped scans), False where it is noise.
    """

    background: float
    threshold: float
    constant: bool

    def mask(self, data: NDArray[np.float32]) -> NDArray[np.bool_]:
        """bool, the shape of `data`."""
        distance = np.abs(data - self.background) if self.constant else data - self.background
        return np.asarray(distance > self.threshold)


def find_foreground(data: NDArray[np.float32]) -> Foreground:
    """Tell foreground from background without trusting zero: the background may be 1e-8, -1000 or noise.

    One value that holds more than a tenth of the voxels, and towers over the values beside it, is a constant
    background: foreground lies 5 per cent of the grey range away from it. Otherwise Otsu's threshold (1979), on square
    roots: bright fluid must not push it up among the tissues.
    """
    top = float(np.percentile(data, 99.9))
    low = float(data.min())
    counts, edges = np.histogram(data, bins=512, range=(low, max(top, np.nextafter(low, np.inf))))
    mode = int(counts.argmax())
    beside = np.delete(counts[max(0, mode - 1) : mode + 2], min(mode, 1)).max(initial=0)
    if counts[mode] > 0.1 * data.size and counts[mode] > 4 * beside:
        inside = data[(data >= edges[mode]) & (data <= edges[mode + 1])]
        background = float(np.median(inside))
        return Foreground(background, 0.05 * max(top - background, background - low), constant=True)
    counts, edges = np.histogram(np.sqrt(np.clip(data, low, top) - low), bins=512)
    threshold = low + _otsu(counts, edges) ** 2
    background = float(np.median(data[data <= threshold]))
    return Foreground(background, threshold - background, constant=False)


def with_near_background(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scan with a constant background below zero lifted to where stripping tools leave it: near the tissue.

    A background of -1000 around tissue of 0 to 900 would take most of the grey range once it is blended into the edge
    by resampling (mean Dice .915 -> .903, of 0 to 255 .833; lifted .915). It is lifted to a quarter of the foreground's
    grey range (0.5th to 99.5th percentile) below the foreground; one that is nearer stays. A background of 0 stays in
    any case: real scans have it 0.06 to 0.63 ranges below, and networks are trained with it.

    Args:
        data: A whole scan, before anything is resampled.
    """
    if data.min() >= 0 or not (foreground := find_foreground(data)).constant or foreground.background >= 0:
        return data
    inside = data[foreground.mask(data)]
    if not inside.size:
        return data
    low, high = (float(each) for each in np.percentile(inside, (0.5, 99.5)))
    floor = low - _NEAR * (high - low)
    return data if foreground.background >= floor else np.maximum(data, np.float32(floor))


def _otsu(counts: NDArray[np.intp], edges: NDArray[np.floating]) -> float:
    """The threshold that parts a histogram into two classes of largest between-class variance."""
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    sums = np.cumsum(counts * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
        between = np.nan_to_num(below * above * gap**2)
    return float(middle[between.argmax()])


def without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without lone voxels: what has fewer than six of its neighbours set doesn't widen the crop."""
    padded = np.pad(mask, 1).astype(np.uint8)
    for axis in range(3):
        padded = np.asarray(_three(padded, axis))
    return np.asarray(mask & (padded[1:-1, 1:-1, 1:-1] > 6))


def _three(volume: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """Sum of each voxel and its two neighbours along an axis (the volume's rim is background)."""
    return np.asarray(volume + np.roll(volume, 1, axis) + np.roll(volume, -1, axis), dtype=np.uint8)
