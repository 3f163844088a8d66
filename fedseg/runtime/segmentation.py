"""A model file at work: segment new scans, and score it against labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg import __version__
from fedseg.errors import DataError, FedsegError
from fedseg.imaging.bids import Case, Dataset, entities, load_dataset
from fedseg.imaging.nifti import Volume, read_image, read_labels, write_labels_like
from fedseg.imaging.transforms import map_labels, prepare, refuse_other_grid, restore
from fedseg.labels import LabelScheme, dseg_tsv
from fedseg.metrics.summary import SubjectScores, score
from fedseg.store.checkpoints import ModelCard, load_model
from fedseg.store.files import storage_errors, write_atomic
from fedseg.training.inference import load_segmenter, segment

SUFFIXES = (".nii", ".nii.gz")
SEGMENTATION = "seg-fedseg_dseg.nii.gz"

OnCase = Callable[[int, int], None]
"""Called with (scans done, scans in all)."""


class Segmenter:
    """A model file, ready to segment.

    Args:
        path: The model file.

    Raises:
        ModelError: if it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        arrays, self.card = load_model(path)
        self._network = load_segmenter(arrays, self.card.architecture)

    @property
    def scheme(self) -> LabelScheme:
        """The model's label scheme."""
        return LabelScheme(self.card.task, self.card.tissues)

    def __call__(self, image: Volume) -> NDArray[np.uint8]:
        """Classes uint8 [i, j, k] on the scan's own grid.

        Raises:
            DataError: if the scan is not one that the model can segment.
        """
        prepared = prepare(image, None, None, spacing_mm=self.card.spacing_mm, scheme=self.scheme)
        return restore(segment(self._network, prepared.image, self.card.patch), prepared.geometry)


@dataclass(frozen=True)
class Scan:
    """A scan to segment and where its segmentation goes, below the output folder."""

    image: Path
    target: Path


def find_scans(inputs: Sequence[Path]) -> list[Scan]:
    """Scans named one by one, in folders, or in BIDS trees.

    Raises:
        DataError: if an input is not there or holds no scan, or two scans would be written to one file.
    """
    scans = [scan for path in inputs for scan in _scans_of(path)]
    targets = [scan.target for scan in scans]
    for target in targets:
        if targets.count(target) > 1:
            raise DataError(f"two inputs would both be written to {target}", hint="segment them into different folders")
    return scans


def _scans_of(path: Path) -> Iterator[Scan]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError("this is no NIfTI file", where=str(path), hint="give .nii or .nii.gz files, or a folder")
        yield Scan(path, _target(path, Path()))
        return
    if not path.is_dir():
        raise DataError("there is no such file or folder", where=str(path), hint="check the path")
    scans = (scan for scan in path.rglob("*_T2w.nii*") if "derivatives" not in scan.relative_to(path).parts)
    found = sorted(scan for scan in scans if scan.name.endswith(SUFFIXES))
    found = found or sorted(scan for scan in path.iterdir() if scan.name.endswith(SUFFIXES))
    if not found:
        raise DataError(
            "the folder holds no scan",
            where=str(path),
            hint="looked for *_T2w.nii[.gz] in it and below, and for *.nii[.gz] in it",
        )
    for scan in found:
        yield Scan(scan, _target(scan, scan.relative_to(path).parent))


def _target(scan: Path, below: Path) -> Path:
    """Where a segmentation goes: by its BIDS name where the scan has one, else where it lay below the input."""
    named = entities(scan)
    if "sub" in named:
        session = (f"ses-{named['ses']}",) if "ses" in named else ()
        below = Path(f"sub-{named['sub']}", *session, "anat")
    return below / f"{_stem(scan)}_{SEGMENTATION}"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_T2w")


def predict(segmenter: Segmenter, scans: Sequence[Scan], out: Path, on_case: OnCase) -> list[tuple[Scan, FedsegError]]:
    """Segment scans into a BIDS derivative; each file is written whole or not at all.

    Returns:
        The scans that could not be segmented, and why: one bad scan does not stop the others.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    failed: list[tuple[Scan, FedsegError]] = []
    for done, scan in enumerate(scans, 1):
        try:
            labels = segmenter(read_image(scan.image))
            target = out / scan.target
            with storage_errors(target.parent):
                target.parent.mkdir(parents=True, exist_ok=True)
            write_labels_like(labels, scan.image, target)
        except DataError as error:
            failed.append((scan, error))
        on_case(done, len(scans))
    if len(failed) < len(scans):
        write_atomic(out / "dataset_description.json", _description(segmenter.card), 0o644)
        write_atomic(out / "dseg.tsv", dseg_tsv(segmenter.scheme).encode(), 0o644)
    return failed


def _description(card: ModelCard) -> bytes:
    generator = {
        "Name": "fedseg",
        "Version": __version__,
        "Description": f"study {card.study}, model {card.model_hash}",
    }
    about = {
        "Name": "fedseg segmentations (for research use only)",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
    }
    return json.dumps(about, indent=2).encode()


@dataclass(frozen=True, eq=False)
class Scored:
    """One scan, its scores, and the volumes that a picture of it needs (all on the scan's own grid)."""

    case: Case
    scores: SubjectScores
    image: NDArray[np.generic]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]


def evaluation_data(data: Path, scheme: LabelScheme, labels: str | None, split: str | None) -> tuple[Dataset, str]:
    """The data set to score on and the split that is scored: test subjects where there are any, else all.

    Raises:
        DataError: if the data set cannot be used, or the split asked for is empty.
    """
    dataset = load_dataset(data, labels=labels, scheme=scheme)
    chosen = split or ("test" if dataset.subjects("test") else "all")
    if not dataset.subjects(None if chosen == "all" else chosen):
        raise DataError(f"no subject is in the split {chosen}", where=str(data), hint="see --split")
    return dataset, chosen


def evaluate(segmenter: Segmenter, dataset: Dataset, split: str, site: str | None, on_case: OnCase) -> Iterator[Scored]:
    """Segment and score every scan of a split.

    Args:
        segmenter: The model.
        dataset: The data.
        split: `train`, `validation`, `test` or `all`.
        site: For subjects whose table names no site.
        on_case: Told of progress.
    """
    subjects = dataset.subjects(None if split == "all" else split)
    cases = [(case, len(runs) > 1) for runs in subjects.values() for case in runs]
    for done, (case, several) in enumerate(cases, 1):
        yield _score(segmenter, dataset, case, site, several)
        on_case(done, len(cases))


def _score(segmenter: Segmenter, dataset: Dataset, case: Case, site: str | None, several: bool) -> Scored:
    target = dataset.target(case)
    if target is None:
        raise DataError("the scan has no labels to score against", where=str(case.image))
    image, labels = read_image(case.image), read_labels(target)
    refuse_other_grid(image, labels)
    truth = map_labels(labels, dataset.class_map(case))
    predicted = segmenter(image)
    scores = score(
        predicted,
        truth,
        image.spacing_mm,
        segmenter.scheme.tissues,
        subject=case.subject,
        site=case.site or site,
        gestational_age_weeks=case.gestational_age_weeks,
        pathology=case.pathology,
        run=case.name if several else None,
    )
    return Scored(case, scores, image.data, truth, predicted, image.affine, image.spacing_mm)


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
