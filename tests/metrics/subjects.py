"""Scores made up for the tests of what is made of them."""

from __future__ import annotations

from fedseg.metrics.scores import SubjectScores

TISSUES = ("white_matter", "ventricles", "brainstem")


def scores(
    subject: str,
    *dice: float,
    site: str | None = None,
    age: float | None = 24.0,
    pathology: str | None = "neurotypical",
    hd: float | None = 2.0,
    run: str | None = None,
) -> SubjectScores:
    """Scores with these Dice of `TISSUES` (one value: of each); `hd` is that of the ventricles, 1 elsewhere."""
    named = dict(zip(TISSUES, dice * (len(TISSUES) // len(dice)), strict=True))
    distances = dict.fromkeys(TISSUES, 1.0) | {"ventricles": hd}
    return SubjectScores(
        subject=subject,
        site=site,
        gestational_age_weeks=age,
        pathology=pathology,
        dice=named,
        hd95_mm=distances,
        volume_similarity=named,
        euler_difference=dict.fromkeys(TISSUES, 2),
        asd_mm=distances,
        nsd=named,
        volume_ml=named,
        reference_volume_ml=dict.fromkeys(TISSUES, 1.0),
        run=run,
    )
