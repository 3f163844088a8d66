"""Can a model's losses tell who it was trained on? The loss-threshold test of Yeom et al. 2018 (1709.01604).

It says what one simple attack achieves on one model, nothing of what a better one would: a failed attack is no proof
of privacy. It is computed on real subjects, so its result stays at the site.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from fedseg.errors import DataError
from fedseg.training.inference import segment
from fedseg.training.losses import subject_loss
from fedseg.training.network import SegmentationNet
from fedseg.training.patches import Labelled

FEWEST_FOR_TAIL = 100
"""Never-seen subjects below which a rate of 1% false positives can't be measured."""

_LEAST_CHANCE = 1e-6


@dataclass(frozen=True)
class Membership:
    """How well losses tell members (trained on) from others (never seen).

    Attributes:
        members: How many.
        others: How many.
        auc: Chance that a random member has a lower loss than a random other; 0.5 is no better than a coin.
        auc_interval: Of `auc` (Newcombe 2006, method 5), which stays honest for few subjects.
        p_value: Chance of an `auc` as large if losses told nothing (Mann and Whitney 1947, exact for few subjects).
        advantage: Largest true-positive less false-positive rate over all thresholds; it favours the attacker, who
            picks the threshold on the same subjects.
        advantage_interval: Of the largest advantage, for all thresholds at once (Massart 1990), so no choice of the
            threshold can mislead it; wide for few subjects.
        tpr_at_1_percent: True-positive rate at 1% false positives; None below `FEWEST_FOR_TAIL` others.
        confidence: Of both intervals.
    """

    members: int
    others: int
    auc: float
    auc_interval: tuple[float, float]
    p_value: float
    advantage: float
    advantage_interval: tuple[float, float]
    tpr_at_1_percent: float | None
    confidence: float

    @property
    def told_apart(self) -> bool:
        """Whether members have lower losses beyond what chance explains at `confidence`."""
        return self.p_value < 1 - self.confidence


def subject_loss_of(model: SegmentationNet, volumes: Sequence[Labelled], patch: tuple[int, int, int]) -> float:
    """Training loss of one subject over its whole volumes, the mean of its scans; nothing is drawn at random.

    Args:
        model: In evaluation mode.
        volumes: Prepared, with labels; at least one.
        patch: The patch that the model was trained on.

    Raises:
        DataError: A volume has no labels, or one that the model has no class for.
    """
    return float(np.mean([_loss(model, volume, patch) for volume in volumes]))


def membership(members: NDArray[np.float64], others: NDArray[np.float64], *, confidence: float = 0.95) -> Membership:
    """What a threshold on the loss tells.

    Args:
        members: Losses of subjects that the model was trained on.
        others: Losses of subjects that it never saw.
        confidence: Of the intervals.

    Raises:
        DataError: One of the groups has fewer than two subjects.
    """
    if min(len(members), len(others)) < 2:
        raise DataError(
            f"{len(members)} subjects that were trained on and {len(others)} that were not: no test can tell anything",
            hint="at least two of each are needed; see the column split of participants.tsv",
        )
    from scipy import stats  # noqa: PLC0415  # slow to load

    area = auc(members, others)
    best = advantage(members, others)
    slack = sum(math.sqrt(math.log(4 / (1 - confidence)) / (2 * len(group))) for group in (members, others))
    return Membership(
        members=len(members),
        others=len(others),
        auc=area,
        auc_interval=_area_interval(area, len(members), len(others), confidence),
        p_value=float(stats.mannwhitneyu(members, others, alternative="less").pvalue),
        advantage=best,
        advantage_interval=(max(0.0, best - slack), min(1.0, best + slack)),
        tpr_at_1_percent=_tail(members, others) if len(others) >= FEWEST_FOR_TAIL else None,
        confidence=confidence,
    )


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Share of pairs in which the member has the lower loss, ties counting half (Mann and Whitney 1947)."""
    ordered = np.sort(others)
    above = len(ordered) - np.searchsorted(ordered, members, side="right")
    equal = np.searchsorted(ordered, members, side="right") - np.searchsorted(ordered, members, side="left")
    return float((above + equal / 2).mean() / len(ordered))


def advantage(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Largest share of members at or below a threshold, less the share of others, over all thresholds; 0 to 1."""
    thresholds = np.concatenate([members, others])
    caught = np.searchsorted(np.sort(members), thresholds, side="right") / len(members)
    wrong = np.searchsorted(np.sort(others), thresholds, side="right") / len(others)
    return float(max(0.0, (caught - wrong).max()))


def _area_interval(area: float, members: int, others: int, confidence: float) -> tuple[float, float]:
    """Where the area lies z standard errors from `area`, reckoned at the end of the interval rather than at `area`."""
    z = float(special.ndtri((1 + confidence) / 2))

    def away(theta: float) -> float:
        middle = (members + others) / 2 - 1
        spread = 1 + middle * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(theta - area) - z * math.sqrt(theta * (1 - theta) * spread / (members * others))

    def end(limit: float) -> float:
        """The place between `area` and `limit` where `away` changes sign; `limit` where it never does."""
        near, far = area, limit
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (middle, far) if away(middle) < 0 else (near, middle)
        return far

    return end(0.0), end(1.0)


def _tail(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Share of members below the threshold that lets at most 1% of the others pass."""
    allowed = len(others) // 100
    return float((members < np.sort(others)[allowed]).mean())


def _loss(model: SegmentationNet, volume: Labelled, patch: tuple[int, int, int]) -> float:
    if volume.labels is None:
        raise DataError("a scan has no labels, and without them it has no loss")
    if int(volume.labels.max()) >= model.classes:
        raise DataError(f"a label {int(volume.labels.max())}, where the model has classes 0 to {model.classes - 1}")
    probabilities = torch.from_numpy(segment(model, volume.image, patch)).clamp(min=_LEAST_CHANCE)
    return float(subject_loss(probabilities.log()[None], torch.from_numpy(volume.labels)[None]))
