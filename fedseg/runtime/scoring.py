"""Model files scored against labels: what is scored on, with what, and each scan's result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError, ModelError, UsageError
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.dataset import Case, Dataset
from fedseg.imaging.grids import refuse_other_grid
from fedseg.imaging.nifti import Volume, read_image, read_labels
from fedseg.imaging.transforms import map_labels
from fedseg.labels import LabelScheme
from fedseg.metrics.scores import SubjectScores, score
from fedseg.runtime.prediction import OnCase, Options, Segmentation, Segmenter
from fedseg.store.checkpoints import ModelCard


@dataclass(frozen=True)
class Source:
    """A data set as a person names it.

    Args:
        data: BIDS folder with labels, or a CSV of pairs.
        labels: How its label numbers are read where it does not say; None where it does.
        site: The site of subjects whose table names none.
    """

    data: Path
    labels: str | None = None
    site: str | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """A data set that is scored on.

    Args:
        dataset: Its cases.
        split: `train`, `validation`, `test` or `all`.
        site: The site of subjects whose table names none.
        namesakes: Subjects that have the same id as others of another data set.
    """

    dataset: Dataset
    split: str
    site: str | None
    namesakes: frozenset[str] = frozenset()

    @property
    def cases(self) -> list[tuple[Case, str | None]]:
        """The scans of the split, each with the name that tells it apart where its subject's id does not."""
        subjects = self.dataset.subjects(None if self.split == "all" else self.split)
        return [(case, self._run(case, runs)) for runs in subjects.values() for case in runs]

    def _run(self, case: Case, runs: Sequence[Case]) -> str | None:
        if case.subject in self.namesakes:
            return f"{self.site_of(case)} {case.name}"
        return case.name if len(runs) > 1 else None

    def site_of(self, case: Case) -> str | None:
        """The site of a scan, where anybody said."""
        return case.site or self.site


@dataclass(frozen=True, eq=False)
class Scored:
    """One scan, its scores, and the volumes that a picture of it needs (all on the scan's own grid).

    It holds hundreds of megabytes: let go of it before the next one.
    """

    case: Case
    scores: SubjectScores
    scan: Volume
    truth: NDArray[np.uint8]
    segmentation: Segmentation


def segmenters_of(models: Sequence[Path], options: Options) -> list[Segmenter]:
    """A segmenter for each model file.

    Raises:
        ModelError: if one cannot be used, or two are of different tasks.
        UsageError: if two are the same model.
    """
    segmenters = [Segmenter([path], options) for path in models]
    hashes = [segmenter.card.model_hash for segmenter in segmenters]
    for number, (path, segmenter) in enumerate(zip(models, segmenters, strict=True)):
        if segmenter.scheme != segmenters[0].scheme:
            raise ModelError(
                f"models of different tasks cannot be compared: this one is for {segmenter.scheme.name}, {models[0]} "
                f"for {segmenters[0].scheme.name}",
                where=str(path),
                hint="compare models of one task",
            )
        if hashes[number] in hashes[:number]:
            raise UsageError(
                f"this is the same model as {models[hashes.index(hashes[number])]}: it would be compared with itself",
                where=str(path),
                hint="name each model once",
            )
    return segmenters


def evaluation_data(data: Path, scheme: LabelScheme, labels: str | None, split: str | None) -> tuple[Dataset, str]:
    """The data set to score on and the split that is scored: test subjects where there are any, else all.

    Raises:
        DataError: if the data set cannot be used, or the split asked for is empty.
    """
    dataset = load_dataset(data, labels=labels, scheme=scheme)
    chosen = split or ("test" if dataset.subjects("test") else "all")
    if not dataset.subjects(None if chosen == "all" else chosen):
        raise DataError(
            f"no subject is in the split {chosen}",
            where=str(data),
            hint="see the column split of participants.tsv; --split all scores every subject",
        )
    return dataset, chosen


def parts_of(sources: Sequence[Source], scheme: LabelScheme, split: str | None) -> list[Part]:
    """All data sets to score on, with the same split of each.

    Raises:
        DataError: if one cannot be used, the split asked for is empty in one, or two hold subjects of one name at one
            site.
        UsageError: if no split was asked for and only some have test subjects.
    """
    parts = [Part(*evaluation_data(each.data, scheme, each.labels, split), each.site) for each in sources]
    splits = {part.split for part in parts}
    if len(splits) > 1:
        without = next(each.data for each, part in zip(sources, parts, strict=True) if part.split == "all")
        raise UsageError(
            "this data set has no test subjects and another one has",
            where=str(without),
            hint="say whom to score at all of them: --split all, for example",
        )
    return _told_apart(parts)


def _told_apart(parts: Sequence[Part]) -> list[Part]:
    """Subjects of one id at two sites are two people, who are named with their sites; at one site they are refused."""
    people = Counter(each for part in parts for each in {(part.site_of(case), case.subject) for case, _ in part.cases})
    for (site, subject), count in sorted(people.items(), key=str):
        if count > 1:
            where = "without a site" if site is None else f"of site {site}"
            raise DataError(
                f"{count} data sets have a subject {subject} {where}",
                where=", ".join(str(part.dataset.root) for part in parts),
                hint="name each data set's site: one --site for each --data; and each data set once",
            )
    ids = Counter(subject for _, subject in people)
    return [
        replace(part, namesakes=frozenset(subject for subject, count in ids.items() if count > 1)) for part in parts
    ]


def evaluate(segmenter: Segmenter, dataset: Dataset, split: str, site: str | None, on_case: OnCase) -> Iterator[Scored]:
    """Segment and score every scan of a split.

    Args:
        segmenter: The model.
        dataset: The data.
        split: `train`, `validation`, `test` or `all`.
        site: For subjects whose table names none.
        on_case: Told of progress.

    Raises:
        DataError: naming the scan that cannot be used.
    """
    part = Part(dataset, split, site)
    cases = part.cases
    for done, (case, run) in enumerate(cases, 1):
        yield score_case(segmenter, part, case, run)
        on_case(done, len(cases))


def score_case(segmenter: Segmenter, part: Part, case: Case, run: str | None) -> Scored:
    """Segment and score one scan.

    Args:
        segmenter: The model.
        part: The data set.
        case: One of its cases.
        run: The name that tells it apart, as in `Part.cases`.

    Raises:
        DataError: naming the scan, where it cannot be used.
    """
    target = part.dataset.target(case)
    if target is None:
        raise DataError("the scan has no labels to score against", where=str(case.image))
    scan, labels = read_image(case.image), read_labels(target)
    refuse_other_grid(scan, labels)
    truth = map_labels(labels, part.dataset.class_map(case))
    segmentation = segmenter(scan)
    scores = score(
        segmentation.labels,
        truth,
        scan.spacing_mm,
        segmenter.scheme.tissues,
        subject=case.subject,
        site=part.site_of(case),
        gestational_age_weeks=case.gestational_age_weeks,
        pathology=case.pathology,
        run=run,
        voxel_mm3=scan.voxel_mm3,
    )
    return Scored(case, scores, scan, truth, segmentation)


def describe_model(path: Path, card: ModelCard) -> dict[str, Any]:
    """What the JSON of an evaluation says of the model."""
    return {
        "file": path.name,
        "study": card.study,
        "model_hash": card.model_hash,
        "plan_hash": card.plan_hash,
        "task": card.task,
        "rounds": card.rounds,
        "privacy": card.privacy,
        "code_version": card.code_version,
    }
