"""One scan, read once, for all the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging.dataset import Case
from fedseg.imaging.foreground import Foreground
from fedseg.imaging.nifti import Fields, Volume
from fedseg.labels import LabelScheme


@dataclass(frozen=True, eq=False)
class Scan:
    """What of a case could be read.

    Args:
        case: Its place in the data set.
        scheme: The scheme that it is checked for.
        image: The scan, or None where it can't be read.
        fields: The header of the scan as stored, or None.
        values: All its grey values, sorted, or None.
        foreground: What tells its foreground, or None.
        target: The label map's or mask's file, or None.
        labels: The label map, or None.
        label_fields: The header of the label map as stored, or None.
        names: Name of each index in the label map; None for a mask, or where there is no table.
        classes: Its classes, uint8 [i, j, k], or None where they can't be told.
    """

    case: Case
    scheme: LabelScheme
    image: Volume | None = None
    fields: Fields | None = None
    values: NDArray[np.float32] | None = None
    foreground: Foreground | None = None
    target: Path | None = None
    labels: Volume | None = None
    label_fields: Fields | None = None
    names: Mapping[int, str] | None = None
    classes: NDArray[np.uint8] | None = None
