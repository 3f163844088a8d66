"""Means of scores over subjects, sites and other groups, and the JSON of `fedseg evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedseg.errors import DataError
from fedseg.metrics.intervals import bootstrap, method
from fedseg.metrics.scores import METRICS, SubjectScores
from fedseg.metrics.subjects import by_subject, mean, values

AGE_BAND_WEEKS = 4


def summarise(scores: Sequence[SubjectScores]) -> dict[str, Any]:
    """The means of `fedseg evaluate --json`.

    Every subject weighs the same: where it has several scans, their mean counts. A missing value (hd95_mm and asd_mm
    of a mask that is empty on one side only) is left out of every mean and counted in `missing`, per scan.

    Returns:
        For each metric `mean` (over subjects, of each one's mean over tissues) and a mean for each tissue. The same,
        with `subjects` (how many), for each group under `by_site`, `by_pathology` and `by_age` (four weeks: `24-28`
        has the scans from 24 to below 28 weeks); scans of which the site, pathology or age is not known are in the
        overall means only. `intervals`: 95 % bootstrap intervals of the overall means, `[low, high]` or None with
        fewer than three subjects (`metrics.intervals`), made as `bootstrap` says. `worst`: the subject and the site
        with the lowest mean Dice; the site is None with fewer than two. `missing` counts for each metric and tissue.
        A mean of nothing is None.

    Raises:
        DataError: Scores of different tissues.
    """
    if any(list(each.dice) != list(scores[0].dice) for each in scores):
        raise DataError("scores of different label schemes have no common mean")
    by_site = _grouped(scores, lambda each: each.site)
    return {
        **_means(scores),
        "intervals": bootstrap({metric: values(scores, metric) for metric in METRICS}),
        "bootstrap": method(),
        "by_site": by_site,
        "by_pathology": _grouped(scores, lambda each: each.pathology),
        "by_age": _grouped(scores, _age_band),
        "worst": {"subject": _worst_subject(scores), "site": _worst_site(by_site)},
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
    numbers = {metric: dict(scores.of(metric)) for metric in (*METRICS, "reference_volume_ml")}
    return {**facts, **run, **numbers}


def _means(scores: Sequence[SubjectScores]) -> dict[str, dict[str, float | None]]:
    return {metric: _means_of(scores, metric) for metric in METRICS}


def _means_of(scores: Sequence[SubjectScores], metric: str) -> dict[str, float | None]:
    subjects = values(scores, metric)
    columns = list(subjects[0]) if subjects else ["mean"]
    return {column: mean(subject[column] for subject in subjects) for column in columns}


def _grouped(scores: Sequence[SubjectScores], group_of: Callable[[SubjectScores], str | None]) -> dict[str, Any]:
    groups: dict[str, list[SubjectScores]] = {}
    for each in scores:
        group = group_of(each)
        if group is not None:
            groups.setdefault(group, []).append(each)
    return {group: {**_means(found), "subjects": len(by_subject(found))} for group, found in sorted(groups.items())}


def _age_band(scores: SubjectScores) -> str | None:
    if scores.gestational_age_weeks is None:
        return None
    start = int(scores.gestational_age_weeks // AGE_BAND_WEEKS) * AGE_BAND_WEEKS
    return f"{start}-{start + AGE_BAND_WEEKS}"


def _worst_subject(scores: Sequence[SubjectScores]) -> dict[str, Any] | None:
    """The subject of the lowest mean Dice, the first of those where several are."""
    found = [(runs[0], mean(mean(run.dice.values()) for run in runs)) for runs in by_subject(scores)]
    ranked = [(dice, each) for each, dice in found if dice is not None]
    if not ranked:
        return None
    dice, each = min(ranked, key=lambda pair: pair[0])
    return {"subject": each.subject, "site": each.site, "dice": dice}


def _worst_site(by_site: Mapping[str, Any]) -> dict[str, Any] | None:
    """The site of the lowest mean Dice; None with fewer than two."""
    ranked = [(means["dice"]["mean"], site) for site, means in by_site.items() if means["dice"]["mean"] is not None]
    if len(ranked) < 2:
        return None
    dice, site = min(ranked)
    return {"site": site, "dice": dice}


def _missing(scores: Sequence[SubjectScores], metric: str) -> dict[str, int]:
    tissues = list(scores[0].dice) if scores else []
    return {tissue: sum(each.of(metric)[tissue] is None for each in scores) for tissue in tissues}
