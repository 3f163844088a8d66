"""The data check: would these scans do, and what is wrong with which?

Every scan is opened and every check is made; nothing stops at the first fault. Results are values: the command line
shows them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.imaging.bids import Case, Dataset
from fedseg.imaging.nifti import Volume, nib, read_image, read_labels
from fedseg.imaging.transforms import find_foreground, map_labels, prepare, refuse_other_grid, refuse_stack
from fedseg.labels import LabelScheme, display_name

Result = TypeVar("Result")

_KEPT_SHARE = 0.95
_BELOW_BACKGROUND = 0.02
_AGE_WEEKS = (18.0, 40.0)
_SPACING_MM = (0.3, 1.5)
_ANISOTROPY = 1.2
_OBLIQUE_DEGREES = 20.0


@dataclass(frozen=True)
class Finding:
    """One thing to know about one file.

    Args:
        subject: The subject's id, or an empty text where it is about the data set.
        file: Its path on this machine.
        severity: `error`: training on it is refused; `warning`: a person should look.
        what: What was found.
        hint: What to do about it, or an empty text.
    """

    subject: str
    file: str
    severity: Literal["error", "warning"]
    what: str
    hint: str


def check(dataset: Dataset, *, scheme: LabelScheme, spacing_mm: float) -> list[Finding]:
    """Open every case and list all that is wrong or odd, errors first, then by subject.

    Args:
        dataset: From `load_dataset(..., strict=False)`, so that faults of single cases are kept.
        scheme: The study's scheme.
        spacing_mm: The plan's spacing.
    """
    dataset = dataclasses.replace(dataset, scheme=scheme)
    found = list(_check_dataset(dataset))
    axes: Counter[str] = Counter()
    for case in dataset.cases:
        found += _check_case(dataset, case, spacing_mm, axes)
    if len(axes) > 1:
        mixed = ", ".join(f"{name} ({count})" for name, count in axes.most_common())
        found.append(_warning("", str(dataset.root), f"scans have different axes: {mixed}", "all are turned to RAS"))
    subject_of = {str(case.image): case.subject for case in dataset.cases}
    kept = {(finding.file, finding.what) for finding in found}
    for error in dataset.problems:
        if (error.where or "", error.what) not in kept:
            found.append(_error(subject_of.get(error.where or "", ""), error))
    return sorted(set(found), key=lambda finding: (finding.severity, finding.subject, finding.file, finding.what))


def _check_dataset(dataset: Dataset) -> Iterator[Finding]:
    """What concerns the data set as a whole."""
    root = str(dataset.root)
    if dataset.cases and not dataset.subjects("train"):
        yield _warning("", root, "no subject is in the training split", "see the column split of participants.tsv")
    for subject in dataset.absent:
        yield _warning(subject, root, "participants.tsv lists this subject, which has no scan", "")
    first: dict[bytes, Case] = {}
    for case in dataset.cases:
        if not case.image.is_file():
            continue
        try:
            content = hashlib.sha256(case.image.read_bytes()).digest()
        except OSError:
            # What cannot be read is reported where the case itself is opened.
            continue
        twin = first.setdefault(content, case)
        if twin.subject != case.subject:
            what = f"the same scan as subject '{twin.subject}', byte for byte"
            yield _warning(case.subject, str(case.image), what, "one patient under two ids counts twice in privacy")


def _check_case(dataset: Dataset, case: Case, spacing_mm: float, axes: Counter[str]) -> list[Finding]:
    """All findings of one case."""
    found: list[Finding] = [*_age(case)]
    attempt = _Attempts(case.subject, found)
    image = attempt(read_image, case.image)
    if image is not None:
        axes[image.axes] += 1
        attempt(refuse_stack, image, dataset.scheme)
        found += [*_grid(case, image, spacing_mm), *_background(case, image)]
    target = dataset.target(case)
    labels = None if target is None else attempt(read_labels, target)
    if image is not None and labels is not None:
        attempt(refuse_other_grid, image, labels)
    if labels is not None:
        found += _check_labels(dataset, case, labels, attempt)
    if image is not None and not any(finding.severity == "error" for finding in found):
        found += _check_crop(dataset, case, image, labels, spacing_mm=spacing_mm, attempt=attempt)
    return found


class _Attempts:
    """Runs checks one after another, and keeps each DataError as a finding."""

    def __init__(self, subject: str, found: list[Finding]) -> None:
        self.subject, self.found = subject, found

    def __call__(self, action: Callable[..., Result], *arguments: object) -> Result | None:
        try:
            return action(*arguments)
        except DataError as error:
            self.found.append(_error(self.subject, error))
            return None


def _check_labels(dataset: Dataset, case: Case, labels: Volume, attempt: _Attempts) -> Iterator[Finding]:
    """Index and name of every label, missing tissues, labels at the edge of the field of view."""
    before = len(attempt.found)
    table = attempt(dataset.class_map, case)
    if len(attempt.found) > before:
        return
    classes = attempt(map_labels, labels, table)
    if classes is None:
        return
    counts = np.bincount(classes.reshape(-1), minlength=dataset.scheme.classes)
    missing = [display_name(tissue) for tissue in dataset.scheme.tissues if not counts[dataset.scheme.index(tissue)]]
    if missing:
        hint = "right for some pathologies; otherwise the table or the labels are wrong"
        yield _warning(case.subject, labels.source, f"no voxel of {', '.join(missing)}", hint)
    if _touches_edge(classes):
        hint = "the brain is cut off, or the labels lie on another grid"
        yield _warning(case.subject, labels.source, "labels reach the edge of the field of view", hint)


def _check_crop(
    dataset: Dataset, case: Case, image: Volume, labels: Volume | None, *, spacing_mm: float, attempt: _Attempts
) -> Iterator[Finding]:
    """The whole way to the network's grid, and whether the crop to the foreground keeps the labels."""
    table = None if labels is None else dataset.class_map(case)
    prepared = attempt(partial(prepare, spacing_mm=spacing_mm, scheme=dataset.scheme), image, labels, table)
    if prepared is None or prepared.labels is None or labels is None:
        return
    kept = np.count_nonzero(prepared.labels) * spacing_mm**3
    whole = np.count_nonzero(map_labels(labels, table)) * float(np.prod(labels.spacing_mm))
    if kept < _KEPT_SHARE * whole:
        hint = "is the image much larger than the brain, or dark where labels are? look at both in a viewer"
        yield _warning(case.subject, image.source, f"only {kept / whole:.0%} of the labels lie in the foreground", hint)


def _age(case: Case) -> Iterator[Finding]:
    age = case.gestational_age_weeks
    if age is not None and not _AGE_WEEKS[0] <= age <= _AGE_WEEKS[1]:
        what = f"gestational age of {age:g} weeks"
        yield _warning(case.subject, str(case.image), what, "expected 18 to 40: weeks, not days or months")


def _grid(case: Case, image: Volume, spacing_mm: float) -> Iterator[Finding]:
    """Voxel size, obliqueness, and forms that disagree."""
    least, most = min(image.spacing_mm), max(image.spacing_mm)
    sizes = " x ".join(f"{size:.3g}" for size in image.spacing_mm)
    if most / least > _ANISOTROPY:
        yield _warning(case.subject, image.source, f"voxels are not cubes: {sizes} mm", "is it a reconstruction?")
    elif not _SPACING_MM[0] <= least <= most <= _SPACING_MM[1]:
        hint = f"reconstructions have 0.5 to 1 mm; the plan works at {spacing_mm:g} mm"
        yield _warning(case.subject, image.source, f"odd voxel size: {sizes} mm", hint)
    angle = float(np.degrees(np.max(nib.affines.obliquity(image.affine))))
    if angle > _OBLIQUE_DEGREES:
        what = f"the axes are oblique by {angle:.0f} degrees"
        yield _warning(case.subject, image.source, what, "reconstruct in, or register to, a standard orientation")
    if not image.forms_agree:
        hint = "the sform is used; check left and right in a viewer"
        yield _warning(case.subject, image.source, "qform and sform place the scan differently", hint)


def _background(case: Case, image: Volume) -> Iterator[Finding]:
    """Backgrounds that aren't zero, or that lie among the tissues' grey values."""
    data = np.asarray(image.data, dtype=np.float32)
    foreground = find_foreground(data)
    if not foreground.constant:
        hint = "mask the brain (or the head) for better results; the threshold is Otsu's"
        yield _warning(case.subject, image.source, "the background is not one value", hint)
    elif float(np.mean(data < foreground.background - foreground.threshold)) > _BELOW_BACKGROUND:
        hint = "was it normalised already? give the scan as reconstructed"
        yield _warning(case.subject, image.source, "tissue lies on both sides of the background's grey value", hint)
    elif foreground.background != 0:
        what = f"the background is {foreground.background:.3g}, not 0"
        yield _warning(case.subject, image.source, what, "handled here; `image > 0` is no brain mask for it")


def _touches_edge(classes: NDArray[np.uint8]) -> bool:
    return any(bool(classes.take(end, axis=axis).any()) for axis in range(3) for end in (0, -1))


def _error(subject: str, error: DataError) -> Finding:
    return Finding(subject, error.where or "", "error", error.what, error.hint or "")


def _warning(subject: str, file: str, what: str, hint: str) -> Finding:
    return Finding(subject, file, "warning", what, hint)
