"""Sites that score a model without scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.federation.evaluation import Measured
from fedseg.plan.manifest import Manifest
from fedseg.plan.sections import Evaluation
from tests.runtime import toy

TISSUES = 7


def subject(dice: float, distance: float | None = 2.0, volumes: float = 0.5) -> Measured:
    """The same in every tissue."""
    return Measured((dice,) * TISSUES, (distance,) * TISSUES, (volumes,) * TISSUES)


class ToyScorer:
    """Says what it was told to, and keeps what it was shown."""

    def __init__(self, *subjects: Measured, before: Callable[[], None] = lambda: None) -> None:
        self.subjects, self.before = subjects, before
        self.shown: list[NDArray[np.float32]] = []

    def measure(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        on_scan: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> tuple[Measured, ...]:
        self.before()
        self.shown.append(toy.LAYOUT.flatten(weights))
        on_scan(len(self.subjects), len(self.subjects))
        return self.subjects


def fail() -> None:
    raise DataError("the scan has no labels to score against", where="sub-01")


# Eighths, which the ring's fixed point holds exactly.
SUBJECTS = {
    "a": (subject(0.5), subject(1.0, 4.0)),
    "b": (subject(0.75, None, 0.25),),
    "c": (),
    "d": (subject(0.25, 8.0), subject(0.875, 150.0), subject(0.125, 2.0)),
    "e": (subject(1.0),),
}
DICE = {site: [Fraction(each.dice[0]) for each in subjects] for site, subjects in SUBJECTS.items()}


def scorers(*sites: str) -> dict[str, ToyScorer]:
    return {site: ToyScorer(*SUBJECTS[site]) for site in sites}


def evaluated(manifest: Manifest) -> Manifest:
    """The same study with federated evaluation."""
    plan = manifest.plan.model_copy(update={"evaluation": Evaluation(federated=True)})
    return manifest.model_copy(update={"plan": plan})
