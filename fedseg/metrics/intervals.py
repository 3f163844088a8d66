"""How far a mean over few subjects can be trusted: bootstrap intervals.

Percentile bootstrap: subjects are drawn with replacement, as many as there are, and the mean is taken each time; the
interval holds the middle 95 % of those means. Draws are not stratified by site: the mix of sites varies as the subjects
do. The interval answers for other subjects of these sites, not for another hospital. With few subjects it is too narrow
(Hesterberg 2015): below about 20, read it as a lower bound of the doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedseg.metrics.subjects import Values

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST = 3
"""An interval of fewer subjects would only repeat their values."""
SEED = 20240601
"""Fixed, so that the same scores have the same interval."""

Interval = list[float] | None


def bootstrap(tables: Mapping[str, Sequence[Values]]) -> dict[str, dict[str, Interval]]:
    """The 95 % interval of the mean of every column of several tables over the same subjects.

    Args:
        tables: By name (a metric), one row a subject, in the same order in each; a row's keys are the columns. A
            missing value (None) is left out of the mean of each draw.

    Returns:
        `[low, high]` by table and column; None where fewer than three subjects have a value.
    """
    found: dict[str, dict[str, Interval]] = {}
    draws: npt.NDArray[np.float64] | None = None
    for name, rows in tables.items():
        columns = list(rows[0]) if rows else []
        table = np.array([[np.nan if row[column] is None else row[column] for column in columns] for row in rows])
        draws = _draws(len(rows)) if draws is None else draws
        found[name] = dict(zip(columns, _intervals(table, draws), strict=True)) if columns else {}
    return found


def method() -> dict[str, Any]:
    """What a reader must know of the intervals, for a document."""
    return {"method": "percentile bootstrap over subjects", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def _draws(subjects: int) -> npt.NDArray[np.float64]:
    """How often each draw has each subject, (draws, subjects)."""
    random = np.random.default_rng(SEED)
    drawn = random.integers(subjects, size=(RESAMPLES, subjects)) if subjects else np.zeros((RESAMPLES, 0), np.int64)
    place = drawn + subjects * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(place.ravel(), minlength=RESAMPLES * subjects)
    return counts.reshape(RESAMPLES, subjects).astype(np.float64)


def _intervals(table: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]) -> list[Interval]:
    present = ~np.isnan(table)
    numbers = draws @ present.astype(np.float64)
    sums = draws @ np.where(present, table, 0.0)
    return [
        _middle(sums[:, column], numbers[:, column]) if np.count_nonzero(present[:, column]) >= FEWEST else None
        for column in range(table.shape[1])
    ]


def _middle(sums: npt.NDArray[np.float64], numbers: npt.NDArray[np.float64]) -> list[float]:
    means = sums[numbers > 0] / numbers[numbers > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
