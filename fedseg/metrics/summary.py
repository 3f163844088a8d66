"""Scores of one subject, their means over subjects and sites, and the JSON of `fedseg evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedseg.errors import DataError
from fedseg.metrics.masks import Mask, Spacing, bounding_box, checked_spacing, same_grid
from fedseg.metrics.overlap import dice, volume_similarity
from fedseg.metrics.surface import hd95
from fedseg.metrics.volumes import volume_ml

METRICS = ("dice", "hd95_mm", "volume_similarity", "volume_ml")


@dataclass(frozen=True)
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
        volume_ml: Predicted volume.
        run: Which of the subject's scans, where there are several.
    """

    subject: str
    site: str | None
    gestational_age_weeks: float | None
    pathology: str | None
    dice: Mapping[str, float]
    hd95_mm: Mapping[str, float | None]
    volume_similarity: Mapping[str, float]
    volume_ml: Mapping[str, float]
    run: str | None = None

    def __post_init__(self) -> None:
        """Refuse metrics of different tissues, and numbers that JSON doesn't have."""
        for metric in METRICS:
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

    Raises:
        DataError: Not two volumes of one shape, a class beyond C, or a broken spacing.
    """
    same_grid(pred, ref)
    for name, labels in (("prediction", pred), ("reference", ref)):
        _refuse_unknown_class(labels, name, len(tissues), subject)
    spacing = checked_spacing(spacing_mm)
    found = {
        tissue: _tissue_scores(*_masks(pred, ref, index), spacing) for index, tissue in enumerate(tissues, start=1)
    }
    return SubjectScores(
        subject=subject,
        site=site,
        gestational_age_weeks=gestational_age_weeks,
        pathology=pathology,
        dice={tissue: values[0] for tissue, values in found.items()},
        hd95_mm={tissue: values[1] if math.isfinite(values[1]) else None for tissue, values in found.items()},
        volume_similarity={tissue: values[2] for tissue, values in found.items()},
        volume_ml={tissue: values[3] for tissue, values in found.items()},
        run=run,
    )


def summarise(scores: Sequence[SubjectScores]) -> dict[str, Any]:
    """The means of `fedseg evaluate --json`.

    Every subject weighs the same: where it has several scans, their mean counts. A missing value (hd95_mm of a
    mask that is empty on one side only) is left out of every mean and counted in `missing`, per scan.

    Returns:
        For each metric `mean` (over subjects, of each one's mean over tissues) and a mean for each tissue; the same
        for each site under `by_site` (scans without a site are in the overall means only); `missing` counts for each
        metric and tissue. A mean of nothing is None.

    Raises:
        DataError: Scores of different tissues.
    """
    if any(list(each.dice) != list(scores[0].dice) for each in scores):
        raise DataError("scores of different label schemes have no common mean")
    sites = sorted({each.site for each in scores if each.site is not None})
    return {
        **_means(scores),
        "by_site": {site: _means([each for each in scores if each.site == site]) for site in sites},
        "missing": {metric: _missing(scores, metric) for metric in METRICS},
    }


def to_json(model: Mapping[str, Any], scores: Sequence[SubjectScores]) -> dict[str, Any]:
    """The document of `fedseg evaluate --json`: `model`, `subjects` in the order given, `summary`.

    A scan has the key `run` only where its subject has several.
    """
    return {"model": dict(model), "subjects": [_row(each) for each in scores], "summary": summarise(scores)}


def _row(scores: SubjectScores) -> dict[str, Any]:
    facts = {name: getattr(scores, name) for name in ("subject", "site", "gestational_age_weeks", "pathology")}
    run = {} if scores.run is None else {"run": scores.run}
    return {**facts, **run, **{metric: dict(scores.of(metric)) for metric in METRICS}}


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


def _tissue_scores(pred: Mask, ref: Mask, spacing: Spacing) -> tuple[float, float, float, float]:
    return dice(pred, ref), hd95(pred, ref, spacing), volume_similarity(pred, ref), volume_ml(pred, spacing)


def _means(scores: Sequence[SubjectScores]) -> dict[str, dict[str, float | None]]:
    return {metric: _means_of(scores, metric) for metric in METRICS}


def _means_of(scores: Sequence[SubjectScores], metric: str) -> dict[str, float | None]:
    tissues = list(scores[0].dice) if scores else []
    subjects = [
        {tissue: _mean(run.of(metric)[tissue] for run in runs) for tissue in tissues} for runs in _by_subject(scores)
    ]
    overall = _mean(_mean(subject.values()) for subject in subjects)
    return {"mean": overall} | {tissue: _mean(subject[tissue] for subject in subjects) for tissue in tissues}


def _by_subject(scores: Sequence[SubjectScores]) -> list[list[SubjectScores]]:
    """The scans of each subject; ids of different sites are different people."""
    subjects: dict[tuple[str | None, str], list[SubjectScores]] = {}
    for each in scores:
        subjects.setdefault((each.site, each.subject), []).append(each)
    return list(subjects.values())


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def _missing(scores: Sequence[SubjectScores], metric: str) -> dict[str, int]:
    tissues = list(scores[0].dice) if scores else []
    return {tissue: sum(each.of(metric)[tissue] is None for each in scores) for tissue in tissues}
