"""Federated evaluation: what a site's scores become before they leave it, and what their sum says.

A site's scores on its kept-back subjects become sums over these subjects, and the sums of all sites are added up by
secure aggregation like updates: nobody sees those of one site, nor how many subjects it has. Every subject counts the
same, wherever it is; a subject's scans count as their mean. A site without such subjects adds zeros.

What the aggregate tells. It is a sum over the session's contributors. Whoever knows what all of them but one have
added, because they collude or have no such subjects, knows that one's: how many subjects it has, and its means. So does
a contributor of two. Two evaluations of one study by different contributors differ by them, so that the number of
subjects of a site that is in one of them alone can follow, whatever models they are of: sites sign a later one for the
contributors of the earlier alone, unless their policy says otherwise. Nothing is noised, so private studies have none.
A minimum on the number of subjects could not be enforced: it is known only once the sum is out.

What a liar can do. Nobody sees one site's statistics, so one contributor can set each mean to any value in its range;
only sums that no honest sites can make are refused (`aggregate_of`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.metrics.subjects import mean
from fedseg.secagg.statistics import StatisticsCode

LONGEST_MM = 100.0
"""What an HD95 counts as at most: longer ones tell only that a tissue was missed altogether."""
MOST_SUBJECTS = 1000
"""Subjects that one site scores at most."""
MOST_EVALUATIONS = 8
"""Evaluations that a site takes part in for one study: each tells a little more of the same subjects."""


@dataclass(frozen=True)
class Measured:
    """The scores of one kept-back subject: for each tissue, in the label scheme's order, the mean over its scans.

    Attributes:
        dice: 0 to 1.
        hd95_mm: Millimetres; None where no scan has one (the tissue is missing in one of the two label maps).
        volume_similarity: 0 to 1.
    """

    dice: tuple[float, ...]
    hd95_mm: tuple[float | None, ...]
    volume_similarity: tuple[float, ...]


@dataclass(frozen=True)
class Mean:
    """One metric over the subjects of all contributors.

    Attributes:
        mean: Over subjects, of each one's mean over tissues; None where there is nothing to average.
        deviation: The standard deviation of that over subjects (n - 1); None for fewer than two.
        tissues: The mean over subjects for each tissue.
        missing: Subjects without a value: of any tissue, and of each tissue.
    """

    mean: float | None
    deviation: float | None
    tissues: tuple[float | None, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Aggregate:
    """What the published sum of an evaluation says; a function of that sum and the number of contributors alone.

    Attributes:
        subjects: How many were scored at all contributors together.
        dice: 0 to 1.
        hd95_mm: Millimetres; of values above `LONGEST_MM` that much counts.
        volume_similarity: 0 to 1.
    """

    subjects: int
    dice: Mean
    hd95_mm: Mean
    volume_similarity: Mean

    def to_json(self, tissues: Sequence[str]) -> dict[str, Any]:
        """`subjects`, and for each metric `mean`, `deviation`, `tissues` and `missing` by tissue."""
        return {"subjects": self.subjects} | {
            name: _metric_json(getattr(self, name), tissues) for name in ("dice", "hd95_mm", "volume_similarity")
        }


def _metric_json(metric: Mean, tissues: Sequence[str]) -> dict[str, Any]:
    return {
        "mean": metric.mean,
        "deviation": metric.deviation,
        "tissues": dict(zip(tissues, metric.tissues, strict=True)),
        "missing": dict(zip(("mean", *tissues), metric.missing, strict=True)),
    }


def statistics_code(sites: int, tissues: int) -> StatisticsCode:
    """The code of a study's evaluations.

    Args:
        sites: Sites in the roster.
        tissues: How many the label scheme has, T: a vector holds the number of subjects, and for each of three metrics
            T + 2 sums and T + 1 counts of missing values.

    Raises:
        PlanError: if the bound on the sum cannot be kept.
    """
    return StatisticsCode(sites, 1 + 3 * (2 * tissues + 3), MOST_SUBJECTS, LONGEST_MM)


def statistics_of(code: StatisticsCode, subjects: Sequence[Measured]) -> NDArray[np.uint32]:
    """What a site adds to the sum.

    First the number of subjects. Then for each metric (Dice, HD95, volume similarity) the sum over subjects of their
    means over tissues, the sum of the squares of these, a sum for each tissue, and how many subjects have no value: of
    any tissue, and of each.

    Args:
        code: Of the study's evaluations.
        subjects: With as many tissues as the code is made for; zeros for none.

    Returns:
        uint32[code.length].

    Raises:
        ProtocolError: A score out of its range, another number of tissues, or more than `MOST_SUBJECTS`.
    """
    if not subjects:
        return code.encode([0.0] * code.dimension)
    dice = [each.dice for each in subjects]
    distances = [[_share(value) for value in each.hd95_mm] for each in subjects]
    volumes = [each.volume_similarity for each in subjects]
    sums = [value for metric in (dice, distances, volumes) for value in _sums(metric)]
    return code.encode([float(len(subjects)), *sums])


def _share(distance_mm: float | None) -> float | None:
    return None if distance_mm is None else min(distance_mm, LONGEST_MM) / LONGEST_MM


def _sums(rows: Sequence[Sequence[float | None]]) -> list[float]:
    for row in rows:
        if not all(value is None or 0 <= value <= 1 for value in row):
            raise ProtocolError("a score is out of its range: this site's scores cannot be summed")
    means = [mean(row) for row in rows]
    columns = [means, *map(list, zip(*rows, strict=True))]
    sums = [math.fsum(_present(column)) for column in columns]
    squares = math.fsum(value * value for value in _present(means))
    return [sums[0], squares, *sums[1:], *(float(column.count(None)) for column in columns)]


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def aggregate_of(code: StatisticsCode, total: NDArray[np.uint32], many: int) -> Aggregate:
    """What a published sum says.

    Args:
        code: Of the study's evaluations.
        total: uint32[length], the ring sum.
        many: How many sites are in it.

    Raises:
        ProtocolError: No label scheme has so many statistics; or the sum is none that so many sites can make which keep
            to the code: numbers of subjects that are no whole numbers, more values missing than there are subjects, or
            a sum beyond its number of values.
    """
    tissues, rest = divmod(code.dimension - 10, 6)
    if tissues < 1 or rest:
        raise ProtocolError(f"an evaluation of {code.dimension} statistics, which no label scheme has")
    statistics = code.decode(total, many)
    # Half a unit in the last place at each site.
    slack = many / (2 * code.scale)
    subjects, metrics = float(statistics[0]), statistics[1:].reshape(3, -1)
    dice, distances, volumes = (_metric(row.tolist(), subjects, slack) for row in metrics)
    return Aggregate(int(subjects), dice, _stretched(distances), volumes)


def _metric(sums: list[float], subjects: float, slack: float) -> Mean:
    """A metric from its T + 2 sums and T + 1 counts of missing values."""
    tissues = (len(sums) - 3) // 2
    total, squares, each, missing = sums[0], sums[1], sums[2 : 2 + tissues], sums[2 + tissues :]
    there = [subjects - count for count in missing]
    possible = (
        all(count.is_integer() for count in (subjects, *missing))
        and min(there) >= 0
        and all(value <= count + slack for value, count in zip((total, *each), there, strict=True))
        and squares <= total + 2 * slack
    )
    if not possible:
        raise ProtocolError("the sum of the scores is none that honest sites can make: one did not keep to the code")
    means = [min(value / count, 1.0) if count else None for value, count in zip((total, *each), there, strict=True)]
    return Mean(means[0], _deviation(total, squares, there[0]), tuple(means[1:]), tuple(map(int, missing)))


def _deviation(total: float, squares: float, count: float) -> float | None:
    return math.sqrt(max(0.0, squares - total * total / count) / (count - 1)) if count > 1 else None


def _stretched(shares: Mean) -> Mean:
    """From shares of `LONGEST_MM` to millimetres."""

    def longer(share: float | None) -> float | None:
        return None if share is None else share * LONGEST_MM

    return Mean(longer(shares.mean), longer(shares.deviation), tuple(map(longer, shares.tissues)), shares.missing)
