"""BIDS folders, and CSVs of pairs, read into data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.dataset import Case, Dataset
from fedseg.imaging.folders import entities, is_own, niftis_below, niftis_in
from fedseg.imaging.grids import refuse_stack
from fedseg.imaging.label_tables import LabelTable, given_table, table_for
from fedseg.imaging.nifti import read_header
from fedseg.imaging.participants import People, read_participants
from fedseg.imaging.tables import (
    Participant,
    Row,
    Tell,
    read_pairs,
    refuse,
    refuse_mixed_units,
)
from fedseg.labels import BRAIN_MASK, LabelScheme
from fedseg.privacy.identity import spelling

_SCANS_OWN = {"sub", "ses", "acq", "ce", "rec", "dir", "run", "mod", "echo", "part", "chunk"}
"""Entities that tell a subject's scans apart; others (`desc`, `label`, `space`) only tell files made from one."""

_MASKS = {("desc", "brain"), ("label", "brain")}


def load_dataset(
    root: Path,
    *,
    labels: str | None = None,
    scheme: LabelScheme,
    require_labels: bool = True,
    strict: bool = True,
) -> Dataset:
    """Read a BIDS folder, or a CSV with the columns `image`, `label` and more (`tables.read_pairs`).

    Labels and masks are looked for beside the scan and under `derivatives/*/`; label tables beside the labels, then
    in each folder above up to the data set's root. Hidden files, `sourcedata`, and our own results (`folders.is_own`)
    are never taken for scans or truth.

    Args:
        root: The folder or the CSV.
        labels: A known table (`feta`, `fidon`, `drawem`, `bounti`) or a table file; overrides every dseg.tsv.
        scheme: The study's scheme.
        require_labels: Whether a scan without labels is a fault; False for prediction.
        strict: Raise the first fault of a table or a single case; False keeps all of them in `problems`, and reads a
            cell that is wrong as empty.

    Raises:
        DataError: No such folder; no scan in it; scans without labels; two subjects with one id; a raw stack of thick
            slices for a tissue task; tables that can't be read; a split that isn't one.
    """
    if not root.exists():
        raise DataError("there is no such folder", where=str(root), hint="check the path")
    override = given_table(labels)
    is_csv = root.is_file() and root.suffix.lower() == ".csv"
    if root.is_file() and not is_csv:
        raise DataError("this is a file, not a folder or a .csv of pairs", where=str(root))
    base = root.parent if is_csv else root
    needed = _needed(scheme) if require_labels else None
    told: list[DataError] = []
    tell = refuse if strict else told.append
    found = _csv_cases(root, override, tell) if is_csv else _bids_cases(root, override, needed, tell)
    if not found.cases and not found.problems and not told:
        raise DataError("no scan in this table", where=str(root), hint="one row a scan: image,label[,subject,...]")
    problems = [*told, *found.problems, *_problems(found.cases, scheme, require_labels)]
    if strict and problems:
        raise _first(problems)
    return Dataset(base, tuple(found.cases), scheme, tuple(problems), found.absent)


@dataclass(frozen=True)
class _Found:
    """Cases, what is wrong with others, and participants without a scan."""

    cases: list[Case]
    problems: list[DataError]
    absent: tuple[str, ...] = ()


def _needed(scheme: LabelScheme) -> str:
    """The BIDS suffix that a task learns from."""
    return "mask" if scheme == BRAIN_MASK else "dseg"


def _first(problems: list[DataError]) -> DataError:
    """The first fault, which says how many more there are."""
    first, more = problems[0], len(problems) - 1
    note = f"{more} more of {'these' if more > 1 else 'this'}: `fedseg data check` lists all" if more else None
    hint = "; ".join(part for part in (first.hint, note) if part)
    return DataError(first.what, where=first.where, hint=hint or None)


def _bids_cases(root: Path, override: LabelTable | None, needed: str | None, tell: Tell) -> _Found:
    """Cases of a BIDS folder."""
    images = [path for path in niftis_below(root, "T2w") if _is_subjects(path.parent.relative_to(root))]
    if not images:
        raise DataError(
            "no scan in this folder",
            where=str(root),
            hint="expected sub-X/anat/sub-X_T2w.nii.gz (BIDS), or give a .csv with the columns image,label",
        )
    table = root / "participants.tsv"
    participants = read_participants(table, tell)
    subjects = {_subject(image, root) for image in images}
    people = dict.fromkeys(sorted(subjects), Participant()) | dict(participants.subjects)
    refuse_mixed_units(people, table, tell)
    _refuse_lookalikes(people, str(root), tell)
    found = _Found([], [], tuple(sorted(set(participants.subjects) - subjects)))
    for image in images:
        try:
            found.cases.append(_case(_bids_row(image, root, participants, needed), root, override))
        except DataError as error:
            found.problems.append(error)
    return found


def _is_subjects(folder: Path) -> bool:
    """Whether a folder, relative to the root, is where BIDS has a subject's anatomical scans."""
    subject, *session, last = folder.parts if len(folder.parts) in (2, 3) else ("", "")
    return subject.startswith("sub-") and last == "anat" and all(each.startswith("ses-") for each in session)


def _bids_row(image: Path, root: Path, people: People, needed: str | None) -> Row:
    subject, parts = _subject(image, root), entities(image)
    return Row(
        subject=subject,
        session=parts.get("ses"),
        run=parts.get("run"),
        image=image,
        labels=_companion(image, root, "dseg", needed=needed == "dseg"),
        mask=_companion(image, root, "mask", needed=needed == "mask"),
        participant=people.of(subject, parts.get("ses")),
    )


def _csv_cases(path: Path, override: LabelTable | None, tell: Tell) -> _Found:
    """Cases of a CSV of pairs."""
    rows = read_pairs(path, tell)
    _refuse_lookalikes({row.subject: row.participant for row in rows}, str(path), tell)
    found = _Found([], [])
    for row in rows:
        try:
            found.cases.append(_case(row, path.parent, override))
        except DataError as error:
            found.problems.append(error)
    return found


def _case(row: Row, root: Path, override: LabelTable | None) -> Case:
    person = row.participant
    return Case(
        subject=row.subject,
        session=row.session,
        run=row.run,
        image=row.image,
        labels=row.labels,
        mask=row.mask,
        site=person.site,
        gestational_age_weeks=person.gestational_age_weeks,
        pathology=person.pathology,
        split=person.split,
        table=table_for(row.labels, root, override),
        subject_key=person.subject_key,
    )


def _problems(cases: list[Case], scheme: LabelScheme, require_labels: bool) -> list[DataError]:
    """What can be said without reading voxels: files, thick slices, labels, label tables."""
    found: list[DataError] = []
    for case in cases:
        try:
            _check_case(case, scheme, require_labels)
        except DataError as error:
            found.append(error)
    return found


def _check_case(case: Case, scheme: LabelScheme, require_labels: bool) -> None:
    refuse_stack(read_header(case.image), scheme)
    if not require_labels:
        return
    target = Dataset(case.image.parent, (case,), scheme).target(case)
    if target is None:
        kind = "brain mask (_desc-brain_mask) or labels (_dseg)" if scheme == BRAIN_MASK else "labels (_dseg)"
        raise DataError(
            f"this scan has no {kind}",
            where=str(case.image),
            hint="expected beside it or under derivatives/*/ with the same sub, ses, rec and run",
        )
    read_header(target)
    Dataset(case.image.parent, (case,), scheme).class_map(case)


def _subject(image: Path, root: Path) -> str:
    """The subject's id, which folder and file name must agree on."""
    folder = image.relative_to(root).parts[0].removeprefix("sub-")
    name = entities(image).get("sub")
    if name != folder:
        raise DataError(
            f"the file is named for subject '{name}' and lies in the folder of '{folder}'", where=str(image)
        )
    return folder


def _refuse_lookalikes(people: Mapping[str, Participant], where: str, tell: Tell) -> None:
    """A fault where two ids, or two subject_keys, would be one on other systems and in the privacy ledger.

    A subject_key is not quoted: it is a cell like any other, and says more of a person than an id.
    """
    ids: dict[str, str] = {}
    keys: dict[str, str] = {}
    for subject in sorted(people):
        first = ids.setdefault(spelling(subject), subject)
        if first != subject:
            tell(DataError(f"two subjects with one id: '{first}' and '{subject}'", where=where, hint="rename one"))
        key = people[subject].subject_key
        other = subject if key is None else keys.setdefault(spelling(key), subject)
        if people[other].subject_key != key:
            what = f"two subject_keys that read alike: those of subjects '{other}' and '{subject}'"
            tell(DataError(what, where=where, hint="rename one"))


def _companion(image: Path, root: Path, suffix: str, *, needed: bool) -> Path | None:
    """The label map or brain mask of a scan; None where there is none, or several and none is needed.

    It must carry all of the scan's entities, and none besides that would make it another scan's (`desc` does no harm);
    the only scan of a subject (or session) may also have one that says less of the scan, or more.
    """
    inside = image.parent.relative_to(root)
    folders = [image.parent, *(folder / inside for folder in sorted((root / "derivatives").glob("*")))]
    found = [path for folder in folders if folder.is_dir() for path in niftis_in(folder, suffix)]
    candidates = [path for path in found if not is_own(path, root) and (suffix != "mask" or _is_brain(path))]
    wanted = entities(image)
    matches = [path for path in candidates if _is_of(entities(path), wanted)]
    if not matches and len(niftis_in(image.parent, "T2w")) == 1:
        matches = [path for path in candidates if _may_be_of(entities(path), wanted)]
    if len(matches) > 1 and needed:
        raise DataError(
            f"{len(matches)} files could be its {suffix}: {', '.join(str(path.relative_to(root)) for path in matches)}",
            where=str(image),
            hint="keep one, or name the pairs in a .csv",
        )
    return matches[0] if len(matches) == 1 else None


def _is_of(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether labels are those of the scan, and could be no other scan's."""
    return wanted.items() <= found.items() and not (found.keys() - wanted.keys()) & _SCANS_OWN


def _may_be_of(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether labels can be of the scan where there is no other: nothing that both say of it differs."""
    return all(found[key] == wanted[key] for key in found.keys() & wanted.keys() & _SCANS_OWN)


def _is_brain(mask: Path) -> bool:
    return bool(_MASKS & entities(mask).items())
