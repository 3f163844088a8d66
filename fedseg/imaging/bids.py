"""A site's data set: BIDS folders, or a CSV of pairs, read into cases.

One `subject` is one patient: all its sessions and runs stand under one id. The unit of privacy is one pregnancy: the
subject, or all subjects with the same `subject_key`.

Brain masks hold external CSF: in the atlases the `_desc-brain_mask` files are all that has a tissue label (they agree
with "label is not 0" to better than 0.5 per cent of the voxels); the hand-drawn masks of the thick-slice stacks
(`site-chuv`) are looser and take in a rim of skull as well. Where a case has no mask file, the mask task takes what
isn't background in its label map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.nifti import read_header
from fedseg.imaging.tables import (
    Participant,
    Row,
    Tell,
    read_pairs,
    read_participants,
    read_text,
    refuse,
    refuse_mixed_units,
)
from fedseg.imaging.transforms import refuse_stack
from fedseg.labels import BRAIN_MASK, TABLES, LabelScheme, class_map, named_table, parse_dseg_tsv
from fedseg.privacy.identity import spelling

SPLITS = ("train", "validation", "test")

_EXTENSIONS = (".nii.gz", ".nii")
_OWN_RESULTS = "fedseg"
_OWN = ("sub", "ses", "acq", "rec", "run")
_MASKS = {("desc", "brain"), ("label", "brain")}


@dataclass(frozen=True)
class LabelTable:
    """What the indices of a label map mean.

    Args:
        source: The file it was read from, or the name of a known table.
        names: Name of each index.
    """

    source: str
    names: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Case:
    """One scan of one subject, and what belongs to it.

    Args:
        subject: The patient's id, without `sub-`. Never leaves the site.
        session: BIDS session, or None.
        run: BIDS run, or None.
        image: The T2w volume.
        labels: Its label map, or None.
        mask: Its brain mask, or None.
        site: Column `site` of participants.tsv, or None.
        gestational_age_weeks: Weeks, or None.
        pathology: As written, or None.
        split: `train`, `validation` or `test`.
        table: What the indices in `labels` mean; None where there is no table.
        subject_key: Column `subject_key`: the same for all ids of one pregnancy; None where there is one id.
    """

    subject: str
    session: str | None
    run: str | None
    image: Path
    labels: Path | None
    mask: Path | None
    site: str | None
    gestational_age_weeks: float | None
    pathology: str | None
    split: str
    table: LabelTable | None = None
    subject_key: str | None = None

    @property
    def unit(self) -> str:
        """The unit of privacy: the subject_key, else the subject."""
        return self.subject if self.subject_key is None else self.subject_key

    @property
    def name(self) -> str:
        """The file's name without `_T2w` and extension: `sub-01_rec-srr`; what outputs are named after."""
        return re.sub(r"_T2w$", "", _stem(self.image))


@dataclass(frozen=True, eq=False)
class Dataset:
    """All the cases of a site.

    Args:
        root: Its folder (of a CSV: the folder that holds it).
        cases: By subject, then file name.
        scheme: The scheme that the labels are read for.
        problems: What is wrong with single cases and cells; empty after `load_dataset` with `strict`.
        absent: Subjects that participants.tsv lists and that have no scan.
    """

    root: Path
    cases: tuple[Case, ...]
    scheme: LabelScheme
    problems: tuple[DataError, ...] = ()
    absent: tuple[str, ...] = ()

    def subjects(self, split: str | None = None) -> dict[str, tuple[Case, ...]]:
        """Cases of each subject of a split (of all, for None), subjects sorted."""
        chosen = [case for case in self.cases if split in (None, case.split)]
        return {
            subject: tuple(case for case in chosen if case.subject == subject)
            for subject in sorted({case.subject for case in chosen})
        }

    def units(self, split: str | None = None) -> dict[str, tuple[Case, ...]]:
        """Cases of each unit of privacy in a split (in all, for None), units sorted.

        Whatever samples, clips or charges goes by these, never by `subjects`.
        """
        chosen = [case for case in self.cases if split in (None, case.split)]
        return {
            unit: tuple(case for case in chosen if case.unit == unit) for unit in sorted({case.unit for case in chosen})
        }

    def target(self, case: Case) -> Path | None:
        """The file to learn from: the label map, or for the brain mask task the mask where there is one."""
        if self.scheme == BRAIN_MASK and case.mask is not None:
            return case.mask
        return case.labels

    def class_map(self, case: Case) -> dict[int, int] | None:
        """Class of each index in `target(case)`; None for a mask, where what isn't 0 is 1.

        Raises:
            DataError: No label table, or one that doesn't map onto the scheme.
        """
        if self.scheme == BRAIN_MASK and (case.mask is not None or case.table is None):
            return None
        if case.table is None:
            raise DataError(
                "no dseg.tsv says what the label numbers mean",
                where=str(case.labels or case.image),
                hint=f"put one beside the labels or at the data set's root, or give --labels {'|'.join(TABLES)}|FILE",
            )
        return class_map(case.table.names, self.scheme, case.table.source)


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
    in each folder above up to the data set's root. Our own results (`derivatives/fedseg`) are never taken for truth.

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
    images = sorted(path for pattern in ("sub-*/anat", "sub-*/ses-*/anat") for path in _scans(root, pattern, "T2w"))
    if not images:
        raise DataError(
            "no scan in this folder",
            where=str(root),
            hint="expected sub-X/anat/sub-X_T2w.nii.gz (BIDS), or give a .csv with the columns image,label",
        )
    table = root / "participants.tsv"
    participants = read_participants(table, tell)
    subjects = {_subject(image, root) for image in images}
    people = dict.fromkeys(subjects, Participant()) | participants
    refuse_mixed_units(people, table, tell)
    _refuse_lookalikes(people, str(root), tell)
    found = _Found([], [], tuple(sorted(set(participants) - subjects)))
    for image in images:
        try:
            found.cases.append(_bids_case(image, root, participants, override, needed))
        except DataError as error:
            found.problems.append(error)
    return found


def _bids_case(
    image: Path, root: Path, people: Mapping[str, Participant], override: LabelTable | None, needed: str | None
) -> Case:
    subject = _subject(image, root)
    person = people.get(subject, Participant())
    labels = _companion(image, root, "dseg", needed=needed == "dseg")
    parts = entities(image)
    return Case(
        subject=subject,
        session=parts.get("ses"),
        run=parts.get("run"),
        image=image,
        labels=labels,
        mask=_companion(image, root, "mask", needed=needed == "mask"),
        site=person.site,
        gestational_age_weeks=person.gestational_age_weeks,
        pathology=person.pathology,
        split=person.split,
        table=table_for(labels, root, override),
        subject_key=person.subject_key,
    )


def _csv_cases(path: Path, override: LabelTable | None, tell: Tell) -> _Found:
    """Cases of a CSV of pairs."""
    rows = read_pairs(path, tell)
    _refuse_lookalikes({row.subject: row.participant for row in rows}, str(path), tell)
    found = _Found([], [])
    for row in rows:
        try:
            found.cases.append(_csv_case(row, path.parent, override))
        except DataError as error:
            found.problems.append(error)
    return found


def _csv_case(row: Row, root: Path, override: LabelTable | None) -> Case:
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


def entities(path: Path) -> dict[str, str]:
    """BIDS entities of a file name: `sub-01_rec-srr_dseg.nii.gz` gives sub and rec; other parts don't count."""
    parts = (part.partition("-") for part in _stem(path).split("_") if "-" in part)
    return {key: value for key, _, value in parts}


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _scans(root: Path, pattern: str, suffix: str) -> list[Path]:
    """Files of a BIDS suffix in the folders that match."""
    ends = tuple(f"_{suffix}{extension}" for extension in _EXTENSIONS)
    folders = [root] if pattern == "." else root.glob(pattern)
    return [
        path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if path.name.endswith(ends)
    ]


def _companion(image: Path, root: Path, suffix: str, *, needed: bool) -> Path | None:
    """The label map or brain mask of a scan; None where there is none, or several and none is needed.

    It must carry all of the scan's entities (more of its own, as `desc`, do no harm); a subject's only scan may also
    have one that carries fewer.
    """
    inside = image.parent.relative_to(root)
    folders = [image.parent]
    folders += [folder / inside for folder in sorted((root / "derivatives").glob("*")) if folder.name != _OWN_RESULTS]
    candidates = [path for folder in folders for path in _scans(folder, ".", suffix) if _is_truth(path, suffix)]
    wanted = entities(image).items()
    matches = [path for path in candidates if wanted <= entities(path).items()]
    if not matches and len(_scans(image.parent, ".", "T2w")) == 1:
        matches = [
            path for path in candidates if {part for part in entities(path).items() if part[0] in _OWN} <= wanted
        ]
    if len(matches) > 1 and needed:
        raise DataError(
            f"{len(matches)} files could be its {suffix}: {', '.join(str(path.relative_to(root)) for path in matches)}",
            where=str(image),
            hint="keep one, or name the pairs in a .csv",
        )
    return matches[0] if len(matches) == 1 else None


def _is_truth(path: Path, suffix: str) -> bool:
    """Whether a file may be learned from: a mask must be of the brain, labels must not be our own result."""
    parts = set(entities(path).items())
    return bool(parts & _MASKS) if suffix == "mask" else ("seg", _OWN_RESULTS) not in parts


def given_table(labels: str | None) -> LabelTable | None:
    """The table of `--labels`: a known name, or a file."""
    if labels is None:
        return None
    path = Path(labels)
    if path.is_file():
        return LabelTable(str(path), parse_dseg_tsv(read_text(path), str(path)))
    if path.suffix or len(path.parts) > 1:
        raise DataError("there is no such label table", where=labels, hint="a file with the columns index and name")
    return LabelTable(f"--labels {labels}", named_table(labels))


def table_for(labels: Path | None, root: Path, override: LabelTable | None) -> LabelTable | None:
    """The override, else the nearest dseg.tsv: the label map's own, then from its folder up to the root."""
    if labels is None or override is not None:
        return override
    candidates = [labels.with_name(f"{_stem(labels)}.tsv")]
    for folder in labels.parents:
        candidates.append(folder / "dseg.tsv")
        if folder == root:
            break
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    return LabelTable(str(path), parse_dseg_tsv(read_text(path), str(path))) if path else None
