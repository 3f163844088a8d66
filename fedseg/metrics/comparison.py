"""Is one model better than another on the same subjects?

Every number is about the paired difference, second minus first, of one subject. The test is the sign-flip permutation
test of the mean difference (Fisher 1935): were the two models interchangeable on each subject, each difference could as
well have had the other sign. `p` is the share of all sign patterns whose mean difference is at least as far from 0 as
the one found (two-sided). It tests the very difference that is reported, needs no normal distribution, and takes ties
and zeros (frequent in Euler differences) without a correction. Up to 14 subjects all patterns are counted; beyond,
99,999 are drawn and p is (hits + 1) / (draws + 1) (Phipson and Smyth 2010).

Of n subjects the rarest outcome is that all differences point one way: p is never below 2 / 2^n, which is 0.0625 for 5
subjects and 0.031 for 6. Holm's correction over seven tissues makes that 0.109 for 7 subjects and 0.027 for 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedseg.errors import DataError
from fedseg.metrics.intervals import SEED, Interval, bootstrap, method
from fedseg.metrics.scores import METRICS, SubjectScores
from fedseg.metrics.subjects import Values, by_subject, mean, with_mean

ALPHA = 0.05
EXACT_UP_TO = 14
DRAWS = 99_999
_AT_ONCE = 10_000
_Scan = tuple[str | None, str, str | None]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One metric of one tissue (or the mean over tissues), second model minus first.

    Args:
        difference: Mean over subjects of the paired difference; None without a subject.
        interval: 95 % percentile bootstrap of it over subjects; None with fewer than three.
        p: Two-sided p value of the sign-flip test, for this comparison alone; None without a subject.
        p_holm: The same after Holm's correction over the tissues of this metric; None for the mean over tissues.
        n: Subjects compared: those for which both models have the value.
    """

    difference: float | None
    interval: Interval
    p: float | None
    p_holm: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two models on the same subjects.

    Args:
        subjects: How many there are.
        metrics: By metric of `METRICS`, then `mean` or tissue.
    """

    subjects: int
    metrics: Mapping[str, Mapping[str, Difference]]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing a p value."""
        always = (
            "differences are second minus first; p values are not corrected over the metrics, p_holm is corrected "
            "over the tissues of one metric: decide before looking which one counts"
        )
        tissues = max(1, len(self.metrics["dice"]) - 1)
        smallest = 2.0 ** (1 - max(1, self.subjects))
        few = [
            f"with {self.subjects} subjects {name} cannot fall below {least:.2g}, whatever the models do"
            for name, least in (("p", smallest), ("p_holm", min(1.0, smallest * tissues)))
            if least >= ALPHA
        ]
        return (always, *few)

    def to_json(self) -> dict[str, Any]:
        """What `fedseg evaluate --json` says of two models."""
        how = f"all sign patterns up to {EXACT_UP_TO} subjects, {DRAWS} drawn ones beyond"
        return {
            "subjects": self.subjects,
            "test": f"two-sided paired sign-flip permutation test of the mean difference; {how}",
            "bootstrap": method(),
            "notes": list(self.notes),
            "metrics": {
                metric: {name: asdict(each) for name, each in found.items()} for metric, found in self.metrics.items()
            },
        }


def compare(first: Sequence[SubjectScores], second: Sequence[SubjectScores]) -> Comparison:
    """Compare two models' scores of the same scans.

    A value counts where both models have it: hd95_mm of a tissue that one of them missed is left out for both, so read
    it beside Dice. A subject's several scans count as the mean of their differences, its `mean` as that of its
    tissues' differences; where nothing is missing the differences are those of `summarise`'s means.

    Args:
        first: The one compared with.
        second: The other, in any order.

    Raises:
        DataError: Not the same scans, or not the same tissues.
    """
    theirs = {_scan(each): each for each in second}
    _refuse_other_scans({_scan(each) for each in first}, set(theirs))
    if any(list(each.dice) != list(theirs[_scan(each)].dice) for each in first):
        raise DataError("models of different label schemes cannot be compared", hint="compare models of one task")
    rows = {metric: [_differences(runs, theirs, metric) for runs in by_subject(first)] for metric in METRICS}
    intervals = bootstrap(rows)
    return Comparison(
        subjects=len(by_subject(first)),
        metrics={metric: _tested(rows[metric], intervals[metric]) for metric in METRICS},
    )


def sign_flip_p(differences: _Floats) -> _Floats:
    """Two-sided p values of the sign-flip permutation test of the mean of paired differences.

    Args:
        differences: One row a subject, one column a comparison, (n, columns). A subject that has no value counts as
            one without a difference (0): flipping it changes nothing.

    Returns:
        For each column, from `2 / 2**n` (n up to 14) or 1 / 100,000 (beyond) to 1; 1 where nothing differs.
    """
    # Sums that are equal on paper may differ in the last digits; they count as equal.
    least = np.abs(differences.sum(axis=0)) - 1e-9 * np.abs(differences).sum(axis=0)
    subjects = len(differences)
    if subjects <= EXACT_UP_TO:
        every = np.arange(2**subjects)[:, None] >> np.arange(subjects) & 1
        exact: _Floats = _hits(every, differences, least) / len(every)
        return exact
    random = np.random.default_rng(SEED)
    hits = np.zeros(differences.shape[1], dtype=np.int64)
    for done in range(0, DRAWS, _AT_ONCE):
        size = min(_AT_ONCE, DRAWS - done), subjects
        hits += _hits(random.integers(2, size=size, dtype=np.int8), differences, least)
    drawn: _Floats = (hits + 1) / (DRAWS + 1)
    return drawn


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (1979) of several p values; None (no test) stays None and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[place] = highest
    return corrected


def _hits(flips: npt.NDArray[np.integer[Any]], differences: _Floats, least: _Floats) -> npt.NDArray[np.int64]:
    """How many of the patterns (1: flipped) give each column a sum at least that far from 0."""
    as_far = np.abs((1.0 - 2.0 * flips) @ differences) >= least
    hits: npt.NDArray[np.int64] = as_far.sum(axis=0)
    return hits


def _scan(scores: SubjectScores) -> _Scan:
    return scores.site, scores.subject, scores.run


def _refuse_other_scans(first: set[_Scan], second: set[_Scan]) -> None:
    alone = [
        f"{len(only)} only in the {name} ({', '.join(_named(scan) for scan in sorted(only, key=_named)[:3])})"
        for name, only in (("first", first - second), ("second", second - first))
        if only
    ]
    if alone:
        raise DataError(
            f"two models can only be compared on the same scans: {'; '.join(alone)}",
            hint="score both on the same data and split",
        )


def _named(scan: _Scan) -> str:
    return " ".join(part for part in scan if part)


def _differences(runs: Sequence[SubjectScores], theirs: Mapping[_Scan, SubjectScores], metric: str) -> Values:
    """One subject's differences, by tissue and their mean."""
    pairs = [(run.of(metric), theirs[_scan(run)].of(metric)) for run in runs]
    return with_mean(
        {tissue: mean(_minus(second[tissue], first[tissue]) for first, second in pairs) for tissue in runs[0].dice}
    )


def _minus(second: float | None, first: float | None) -> float | None:
    return None if second is None or first is None else second - first


def _tested(rows: Sequence[Values], intervals: Mapping[str, Interval]) -> dict[str, Difference]:
    columns = list(rows[0]) if rows else []
    numbers = {column: sum(row[column] is not None for row in rows) for column in columns}
    found = sign_flip_p(np.array([[row[column] or 0.0 for column in columns] for row in rows])) if rows else ()
    p_values = {column: float(p) if numbers[column] else None for column, p in zip(columns, found, strict=True)}
    tissues = columns[1:]
    corrected = dict(zip(tissues, holm([p_values[tissue] for tissue in tissues]), strict=True))
    return {
        column: Difference(
            difference=mean(row[column] for row in rows),
            interval=intervals[column],
            p=p_values[column],
            p_holm=corrected.get(column),
            n=numbers[column],
        )
        for column in columns
    }
