"""All checks over a data set: every scan is read once, every check is made, nothing stops at the first fault.

Results are values: the command line shows them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.imaging.dataset import Case, Dataset
from fedseg.imaging.foreground import find_foreground
from fedseg.imaging.grids import refuse_other_grid, refuse_stack
from fedseg.imaging.nifti import Volume, read_fields, read_image, read_labels, stem
from fedseg.imaging.quality.finding import Finding, Remark, finding, ordered, refused
from fedseg.imaging.quality.geometry import check_geometry
from fedseg.imaging.quality.identifying import check_columns, check_header, check_name, check_sidecar
from fedseg.imaging.quality.intensities import check_contrast, check_intensities
from fedseg.imaging.quality.label_maps import check_classes, check_place, check_sides, check_stored_labels
from fedseg.imaging.quality.metadata import check_age, check_age_column
from fedseg.imaging.quality.scan import Scan
from fedseg.imaging.quality.site import Summary, compare, summary
from fedseg.imaging.tables import columns
from fedseg.imaging.transforms import kept_share, map_labels, prepare
from fedseg.labels import LabelScheme

Result = TypeVar("Result")
OnScan = Callable[[Scan, list[Finding], int, int], None]
"""Called with each scan, what was found in it, scans done, scans in all."""

_KEPT_SHARE = 0.95
_HEADER_BYTES = 512


def check(
    dataset: Dataset, *, scheme: LabelScheme, spacing_mm: float, n4: bool = False, on_scan: OnScan | None = None
) -> list[Finding]:
    """Open every case and list all that is wrong or odd: errors first, then by kind and scan.

    Args:
        dataset: From `load_dataset(..., strict=False)`, so that faults of single cases are kept.
        scheme: The study's scheme.
        spacing_mm: The network's voxel size.
        n4: Whether bias fields are taken out on the way to the network.
        on_scan: Told of each scan while its voxels are in memory.
    """
    dataset = dataclasses.replace(dataset, scheme=scheme)
    found = [*_check_dataset(dataset)]
    summaries: list[Summary] = []
    for done, case in enumerate(dataset.cases, 1):
        scan, remarks = _check_case(dataset, case, spacing_mm, n4)
        found += remarks
        kept = summary(scan)
        summaries += [] if kept is None else [kept]
        if on_scan is not None:
            on_scan(scan, ordered(remarks), done, len(dataset.cases))
    found += [*compare(summaries, str(dataset.root)), *_left_over(dataset, found)]
    return ordered(found)


def _left_over(dataset: Dataset, found: list[Finding]) -> Iterator[Finding]:
    """What was wrong when the data set was loaded, where no check has said it again."""
    cases = {str(case.image): case for case in dataset.cases}
    said = {(each.file, each.what) for each in found}
    for error in dataset.problems:
        where = error.where or ""
        if (where, error.what) not in said:
            case = cases.get(where)
            subject, scan = ("", "") if case is None else (case.subject, case.name)
            yield finding(refused("files", error), file=where, subject=subject, scan=scan)


def _check_dataset(dataset: Dataset) -> Iterator[Finding]:
    """What concerns the data set as a whole: splits, tables."""
    root = str(dataset.root)
    if dataset.cases and not dataset.subjects("train"):
        hint = "see the column split of participants.tsv"
        yield finding(Remark("no-training", "warning", "no subject is in the training split", hint), file=root)
    for subject in dataset.absent:
        remark = Remark("absent", "warning", "participants.tsv lists a subject that has no scan")
        yield finding(remark, file=root, subject=subject, scan=f"sub-{subject}")
    for table in _tables(dataset.root):
        yield from (finding(remark, file=str(table)) for remark in _check_table(table))


def _tables(root: Path) -> list[Path]:
    """participants.tsv, a CSV of pairs, and BIDS' tables of sessions and scans, which may hold dates."""
    patterns = ("participants.tsv", "*.csv", "sub-*/*_sessions.tsv", "sub-*/*_scans.tsv", "sub-*/ses-*/*_scans.tsv")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def _check_table(path: Path) -> list[Remark]:
    try:
        cells = columns(path)
    except DataError as error:
        return [refused("table", error)]
    return [*check_columns(cells), *(check_age_column(cells) if path.name == "participants.tsv" else ())]


class _Notes:
    """Collects what is said of one case, and runs what may be refused."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.found: list[Finding] = []

    def say(self, remarks: Iterator[Remark], file: Path) -> None:
        """Keep remarks about a file."""
        case = self._case
        self.found += [finding(each, file=str(file), subject=case.subject, scan=case.name) for each in remarks]

    def attempt(self, kind: str, file: Path, action: Callable[[], Result]) -> Result | None:
        """What `action` returns; None, and an error of this kind, where it is refused."""
        try:
            return action()
        except DataError as error:
            self.say(iter([refused(kind, error)]), Path(error.where or file))
            return None


def _check_case(dataset: Dataset, case: Case, spacing_mm: float, n4: bool) -> tuple[Scan, list[Finding]]:
    """One case, read once, and all that is found in it."""
    notes = _Notes(case)
    notes.say(check_age(case.gestational_age_weeks), case.image)
    notes.say(check_name(case.subject, case.image.name), case.image)
    scan = _check_image(Scan(case, dataset.scheme), notes, spacing_mm)
    target = dataset.target(case)
    if target is not None:
        scan = _check_target(dataset, scan, target, notes)
    for file in (case.image, target):
        if file is not None and file.is_file():
            notes.say(_check_fields(scan, file), file)
    if scan.image is not None and not any(each.severity == "error" for each in notes.found):
        _check_prepared(scan.image, scan, spacing_mm, n4, notes)
    return scan, notes.found


def _check_image(scan: Scan, notes: _Notes, spacing_mm: float) -> Scan:
    """Everything about the scan alone."""
    file = scan.case.image
    image = notes.attempt("unreadable", file, partial(read_image, file))
    if image is None:
        return scan
    fields = read_fields(file)
    values = np.sort(image.data, axis=None).astype(np.float32, copy=False)
    foreground = find_foreground(np.asarray(image.data, dtype=np.float32))
    notes.attempt("thick-slices", file, partial(refuse_stack, image, scan.scheme))
    notes.say(check_geometry(image, fields, scan.scheme, spacing_mm), file)
    notes.say(check_intensities(image, fields, values, foreground, scan.scheme), file)
    return dataclasses.replace(scan, image=image, fields=fields, values=values, foreground=foreground)


def _check_target(dataset: Dataset, scan: Scan, target: Path, notes: _Notes) -> Scan:
    """Everything about the labels, and whether they belong to the scan."""
    labels = notes.attempt("labels-unreadable", target, partial(read_labels, target))
    if labels is None:
        return dataclasses.replace(scan, target=target)
    fields = read_fields(target)
    notes.say(check_stored_labels(labels, fields), target)
    classes = _classes(dataset, scan.case, labels, notes)
    names = None if scan.case.table is None or target != scan.case.labels else scan.case.table.names
    scan = dataclasses.replace(scan, target=target, labels=labels, label_fields=fields, names=names, classes=classes)
    if classes is not None:
        notes.say(check_classes(classes, labels, scan.scheme), target)
    if names is not None:
        notes.say(check_sides(labels, names), target)
    return _check_pair(scan, labels, notes)


def _classes(dataset: Dataset, case: Case, labels: Volume, notes: _Notes) -> NDArray[np.uint8] | None:
    """The classes of a label map, or None where its table or its numbers are wrong."""
    file = Path(labels.source)
    before = len(notes.found)
    table = notes.attempt("label-table", file, partial(dataset.class_map, case))
    if len(notes.found) > before:
        return None
    return notes.attempt("label-values", file, partial(map_labels, labels, table))


def _check_pair(scan: Scan, labels: Volume, notes: _Notes) -> Scan:
    """Scan and labels together."""
    if scan.image is None or scan.foreground is None:
        return scan
    before = len(notes.found)
    notes.attempt("other-grid", Path(labels.source), partial(refuse_other_grid, scan.image, labels))
    if len(notes.found) == before and scan.classes is not None:
        notes.say(check_place(scan.classes, scan.image, scan.foreground), Path(labels.source))
        notes.say(check_contrast(scan.image, scan.classes, scan.scheme), scan.case.image)
    return scan


def _check_fields(scan: Scan, file: Path) -> Iterator[Remark]:
    """Identifying fields in a file's header and in the sidecar beside it."""
    fields = scan.fields if file == scan.case.image else scan.label_fields
    if fields is not None:
        with file.open("rb") as opened:
            yield from check_header(fields, opened.read(_HEADER_BYTES), file.name)
    sidecar = file.with_name(f"{stem(file)}.json")
    if not sidecar.is_file():
        return
    try:
        yield from check_sidecar(json.loads(sidecar.read_bytes()))
    except (OSError, ValueError):
        yield Remark("sidecar-unreadable", "warning", "the sidecar is not JSON that can be read")


def _check_prepared(image: Volume, scan: Scan, spacing_mm: float, n4: bool, notes: _Notes) -> None:
    """The whole way to the network's grid, and whether the crop to the foreground keeps the labels."""
    file = scan.case.image
    bring = partial(prepare, image, None, None, spacing_mm=spacing_mm, scheme=scan.scheme, n4=n4)
    prepared = notes.attempt("grid", file, bring)
    if prepared is None or scan.classes is None:
        return
    kept = kept_share(scan.classes > 0, prepared.geometry)
    if kept < _KEPT_SHARE:
        hint = "is the image much larger than the brain, or dark where labels are? look at both in a viewer"
        detail = f"only {kept:.0%} of the labels lie in the foreground"
        notes.say(iter([Remark("crop", "warning", "labels lie outside the foreground", hint, detail)]), file)
