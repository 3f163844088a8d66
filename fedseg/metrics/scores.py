"""What one scan's segmentation scored: every metric, every tissue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedseg.errors import DataError
from fedseg.metrics.masks import Mask, Spacing, bounding_box, checked_spacing, same_grid
from fedseg.metrics.overlap import dice, volume_similarity
from fedseg.metrics.surface import asd_mm, hd95, nsd, surfaces
from fedseg.metrics.topology import euler_difference
from fedseg.metrics.volumes import volume_ml

METRICS = ("dice", "hd95_mm", "volume_similarity", "euler_difference", "asd_mm", "nsd", "volume_ml")


@dataclass(frozen=True, kw_only=True)
class SubjectScores:
    """What one scan's segmentation scored, per tissue.

    Args:
        subject: The subject's id.
        site: The hospital, None where nobody said.
        gestational_age_weeks: None where the table does not have it.
        pathology: As the table says it.
        dice: From 0 to 1; 1 where both masks are empty, 0 where exactly one is.
        hd95_mm: None where exactly one mask is empty, 0 where both are.
        volume_similarity: From 0 to 1, empty masks as for Dice.
        euler_difference: From 0; an empty mask has the Euler characteristic 0.
        asd_mm: Empty masks as for hd95_mm.
        nsd: From 0 to 1 at a tolerance of 1 mm (`surface.NSD_TOLERANCE_MM`), empty masks as for Dice.
        volume_ml: Predicted volume.
        reference_volume_ml: The reference's volume; not one of `METRICS`.
        run: Which of the subject's scans, where there are several.
    """

    subject: str
    site: str | None
    gestational_age_weeks: float | None
    pathology: str | None
    dice: Mapping[str, float]
    hd95_mm: Mapping[str, float | None]
    volume_similarity: Mapping[str, float]
    euler_difference: Mapping[str, int]
    asd_mm: Mapping[str, float | None]
    nsd: Mapping[str, float]
    volume_ml: Mapping[str, float]
    reference_volume_ml: Mapping[str, float]
    run: str | None = None

    def __post_init__(self) -> None:
        """Refuse metrics of different tissues, and numbers that JSON doesn't have."""
        for metric in (*METRICS, "reference_volume_ml"):
            values = self.of(metric)
            if list(values) != list(self.dice):
                raise DataError(f"{metric} has other tissues than dice", where=self.subject)
            if not all(value is None or math.isfinite(value) for value in values.values()):
                raise DataError(f"{metric} is not finite", where=self.subject)

    def of(self, metric: str) -> Mapping[str, float | None]:
        """The values of one of `METRICS`, by tissue."""
        values: Mapping[str, float | None] = getattr(self, metric)
        return values


def score(
    pred: npt.NDArray[np.integer[Any]],
    ref: npt.NDArray[np.integer[Any]],
    spacing_mm: Spacing,
    tissues: Sequence[str],
    *,
    subject: str,
    site: str | None = None,
    gestational_age_weeks: float | None = None,
    pathology: str | None = None,
    run: str | None = None,
    voxel_mm3: float | None = None,
) -> SubjectScores:
    """Score one predicted label map against its reference.

    Args:
        pred: Predicted classes, (i, j, k): 0 background, 1..C `tissues` in order.
        ref: Reference classes, same shape and numbering.
        spacing_mm: Voxel edges along the three axes.
        tissues: Names of the classes 1..C.
        subject: The subject's id; it stays in the report of the site that evaluates.
        site: The hospital, if known.
        gestational_age_weeks: If known.
        pathology: If known.
        run: Which of the subject's scans, where there are several.
        voxel_mm3: Volume of a voxel; None: the product of its edges, which are at right angles then.

    Raises:
        DataError: Not two volumes of one shape, a class beyond C, or a broken spacing.
    """
    same_grid(pred, ref)
    for name, labels in (("prediction", pred), ("reference", ref)):
        _refuse_unknown_class(labels, name, len(tissues), subject)
    spacing = checked_spacing(spacing_mm)
    voxel = math.prod(spacing) if voxel_mm3 is None else voxel_mm3
    by_tissue = [_tissue_scores(*_masks(pred, ref, index), spacing, voxel) for index in range(1, len(tissues) + 1)]
    by_metric: dict[str, Any] = {
        metric: {tissue: values[metric] for tissue, values in zip(tissues, by_tissue, strict=True)}
        for metric in (*METRICS, "reference_volume_ml")
    }
    return SubjectScores(
        subject=subject,
        site=site,
        gestational_age_weeks=gestational_age_weeks,
        pathology=pathology,
        run=run,
        **by_metric,
    )


def _refuse_unknown_class(labels: npt.NDArray[np.integer[Any]], name: str, classes: int, subject: str) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"the {name} has {labels.dtype} voxels, not whole numbers", where=subject)
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > classes:
        raise DataError(f"the {name} has a class {low if low < 0 else high}; known are 0 to {classes}", where=subject)


def _masks(pred: npt.NDArray[np.integer[Any]], ref: npt.NDArray[np.integer[Any]], index: int) -> tuple[Mask, Mask]:
    """Both masks of one class, cropped to their common box."""
    predicted: Mask = pred == index
    present: Mask = ref == index
    box = bounding_box(predicted | present) or (slice(0, 0),) * 3
    return predicted[box], present[box]


def _tissue_scores(pred: Mask, ref: Mask, spacing: Spacing, voxel_mm3: float) -> dict[str, float | None]:
    found = surfaces(pred, ref, spacing)
    return {
        "dice": dice(pred, ref),
        "hd95_mm": _finite(hd95(found)),
        "volume_similarity": volume_similarity(pred, ref),
        "euler_difference": euler_difference(pred, ref),
        "asd_mm": _finite(asd_mm(found)),
        "nsd": nsd(found),
        "volume_ml": volume_ml(pred, voxel_mm3),
        "reference_volume_ml": volume_ml(ref, voxel_mm3),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
