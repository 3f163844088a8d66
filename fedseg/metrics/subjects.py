"""Values by subject: the unit of every mean, interval and test. A subject's several scans count as their mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedseg.metrics.scores import SubjectScores

Values = dict[str, float | None]
"""A subject's value for `mean` (over its tissues) and for each tissue; None where there is none."""


def by_subject(scores: Sequence[SubjectScores]) -> list[list[SubjectScores]]:
    """The scans of each subject, in order of first appearance; ids of different sites are different people."""
    subjects: dict[tuple[str | None, str], list[SubjectScores]] = {}
    for each in scores:
        subjects.setdefault((each.site, each.subject), []).append(each)
    return list(subjects.values())


def values(scores: Sequence[SubjectScores], metric: str) -> list[Values]:
    """One metric's values of each subject; a scan without a value (None) is left out of the subject's."""
    tissues = list(scores[0].dice) if scores else []
    return [
        with_mean({tissue: mean(run.of(metric)[tissue] for run in runs) for tissue in tissues})
        for runs in by_subject(scores)
    ]


def with_mean(tissues: Values) -> Values:
    """The same values, with their mean first."""
    return {"mean": mean(tissues.values()), **tissues}


def mean(numbers: Iterable[float | None]) -> float | None:
    """The mean of those that are there; None where none is."""
    present = [number for number in numbers if number is not None]
    return math.fsum(present) / len(present) if present else None
