"""A site's scans as its part in a federated evaluation: the same code as `fedseg evaluate`, and its defaults.

Precision and threads are the plan's, as in training: a site must be able to give the same scores twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from fedseg.errors import Interrupted
from fedseg.federation.evaluation import MOST_SUBJECTS, Measured
from fedseg.federation.vector import Layout
from fedseg.imaging.dataset import Dataset
from fedseg.metrics.scores import SubjectScores
from fedseg.metrics.subjects import values
from fedseg.plan.manifest import Manifest
from fedseg.runtime.model_file import write_model
from fedseg.runtime.ports import Arrays, OnStep, ShouldStop
from fedseg.runtime.prediction import Options, Segmenter
from fedseg.runtime.scoring import evaluate
from fedseg.training.compute import reproducible

SPLIT = "test"


class SiteScorer:
    """Scores a model on the test subjects of a site; each scan on its own grid.

    Args:
        manifest: The study.
        layout: Order of the network's arrays in the flat vector.
        dataset: The site's; all its scans have labels.
        folder: Where the model lies while it is read.
    """

    def __init__(self, manifest: Manifest, layout: Layout, dataset: Dataset, folder: Path) -> None:
        self._manifest, self._layout, self._folder = manifest, layout, folder
        chosen = scored(dataset)
        self._dataset = replace(dataset, cases=tuple(case for case in dataset.cases if case.subject in chosen))

    def measure(self, weights: Arrays, *, on_scan: OnStep, should_stop: ShouldStop) -> Sequence[Measured]:
        """See `runtime.ports.Scorer`."""

        def told(done: int, scans: int) -> None:
            on_scan(done, scans)
            if should_stop():
                raise Interrupted("the evaluation was stopped between two scans", hint="join again to go on")

        if not self._dataset.subjects(SPLIT):
            return ()
        training, path = self._manifest.plan.training, self._folder / "evaluated.safetensors"
        write_model(path, self._manifest, self._layout, self._layout.flatten(weights), ())
        try:
            segmenter = Segmenter([path], Options(precision=training.precision))
        finally:
            path.unlink(missing_ok=True)
        with reproducible(training.threads):
            # One scan's volumes at a time: `map` holds on to none of them.
            return measured(list(map(attrgetter("scores"), evaluate(segmenter, self._dataset, SPLIT, None, told))))


def scored(dataset: Dataset) -> set[str]:
    """The test subjects that are scored: all, or `MOST_SUBJECTS` of them, evenly spaced among their sorted ids."""
    names = sorted(dataset.subjects(SPLIT))
    count = min(len(names), MOST_SUBJECTS)
    return {names[i * len(names) // count] for i in range(count)}


def measured(scores: Sequence[SubjectScores]) -> list[Measured]:
    """Scores of scans as scores of subjects."""
    tissues = list(scores[0].dice) if scores else []
    by_metric = [values(scores, metric) for metric in ("dice", "hd95_mm", "volume_similarity")]
    rows = ([tuple(subject[tissue] for tissue in tissues) for subject in metric] for metric in by_metric)
    return [Measured(*subject) for subject in zip(*rows, strict=True)]
