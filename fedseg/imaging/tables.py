"""The tables beside the scans: what their rows say, and a CSV of pairs.

A message names a row by its subject and a column by its name. It quotes no cell but ids and paths: with columns
shifted, any other may hold a name or a date of birth.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.nifti import stem

_MISSING = {"", "n/a", "na", "nan", "-"}
_NONE = "none"
_GENERIC = {"image", "img", "t2", "t2w", "scan", "volume", "anat", "srr", "recon"}
_PATH = re.compile(r"\S+\.nii(\.gz)?")
_PLAIN_WORD = re.compile(r"[A-Za-z]{1,20}")
AGES = ("gestational_age", "gestational_age_weeks", "ga")
_SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "test": "test"}

Tell = Callable[[DataError], None]
"""What is done with a fault: raise it, or keep it and read on."""


def refuse(error: DataError) -> None:
    """Raise the fault at once."""
    raise error


@dataclass(frozen=True)
class Participant:
    """What a table says of one subject; None where it says nothing."""

    site: str | None = None
    gestational_age_weeks: float | None = None
    pathology: str | None = None
    split: str = "train"
    subject_key: str | None = None


@dataclass(frozen=True)
class Row:
    """A scan and its files, as a row of a CSV of pairs or a BIDS folder has it."""

    subject: str
    session: str | None
    run: str | None
    image: Path
    labels: Path | None
    mask: Path | None
    participant: Participant


def read_pairs(path: Path, tell: Tell = refuse) -> list[Row]:
    """Read a CSV of pairs.

    Columns: `image` and `label`; if wanted `subject`, `session`, `run`, `mask` and those of participants.tsv. Paths
    are relative to the CSV's folder. Without `subject`, the file's `sub-X` names it, else the file's name, or its
    folder's where the file is just called `image.nii.gz` or the like.

    Args:
        path: The table.
        tell: Told of each fault. Where it returns, the cell counts as empty, and a row without an image as not there.

    Raises:
        DataError: The table isn't UTF-8. And from `tell`: a row without image; a cell that is no file; one image in two
            rows; two scans that only a guess from their names would make one subject; one subject in two splits or
            under two subject_keys; as `refuse_mixed_units`.
    """
    people: dict[str, Participant] = {}
    rows: dict[Path, Row] = {}
    for number, cells in enumerate(rows_of(path, ","), 1):
        row = _pair(cells, number, path, tell)
        if row is None:
            continue
        if row.image in rows:
            tell(DataError(f"two rows name one image: {row.image}", where=str(path), hint="remove one of them"))
            continue
        rows[row.image] = row
        if row.subject in people and not _says_subject(cells):
            tell(
                DataError(
                    f"two subjects with one id: two scans would both be subject '{row.subject}' by their names",
                    where=str(path),
                    hint="add a column subject that says which scans are of one patient",
                )
            )
        refuse_other(row.subject, people.setdefault(row.subject, row.participant), row.participant, path, tell)
    refuse_mixed_units(people, path, tell)
    return list(rows.values())


def refuse_mixed_units(people: Mapping[str, Participant], path: Path, tell: Tell = refuse) -> None:
    """Refuse subject_keys that leave open who is one pregnancy, or tear it apart.

    Args:
        people: Every subject that has a scan or a row, by id.
        path: The table, for the message.
        tell: Told of each fault.

    Raises:
        DataError: From `tell`: one subject_key in two splits; or one that is the id of a subject without any.
    """
    first: dict[str, str] = {}
    for subject, person in people.items():
        key = person.subject_key
        if key is None:
            continue
        other = first.setdefault(key, subject)
        if people[other].split != person.split:
            what = f"subjects '{other}' and '{subject}' have one subject_key and stand in two splits"
            tell(DataError(what, where=str(path), hint="a pregnancy has one"))
        if key in people and people[key].subject_key is None:
            tell(
                DataError(
                    f"the subject_key of subject '{subject}' is the id of subject '{key}', which has none",
                    where=str(path),
                    hint="give that one a subject_key too: the same if they are one pregnancy, another if not",
                )
            )


def refuse_other(subject: str, first: Participant, other: Participant, path: Path, tell: Tell) -> None:
    """A fault where two rows of one subject contradict each other on what it is."""
    if first.split != other.split:
        tell(DataError(f"subject '{subject}' stands in two splits", where=str(path), hint="a patient has one"))
    if first.subject_key != other.subject_key:
        hint = "write the same subject_key into all its rows"
        tell(DataError(f"subject '{subject}' stands under two subject_keys", where=str(path), hint=hint))


def read_text(path: Path) -> str:
    """A table's text; DataError where it isn't UTF-8 or can't be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the table cannot be read as UTF-8 text", where=str(path), hint="save it again as UTF-8"
        ) from error


def columns(path: Path) -> dict[str, list[str]]:
    """The cells of each column of a .tsv (or .csv), by normalised name; for the data check.

    Raises:
        DataError: The table isn't UTF-8.
    """
    found: dict[str, list[str]] = {}
    for row in rows_of(path, "," if path.suffix.lower() == ".csv" else "\t"):
        for column, cell in row.items():
            found.setdefault(column, []).append(cell)
    return found


def rows_of(path: Path, delimiter: str) -> list[dict[str, str]]:
    """Rows as dicts, column names in lower case with underscores; rows of blanks are left out."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        return []
    header, *rows = csv.reader(lines, delimiter=delimiter)
    columns = [re.sub(r"[^a-z0-9]+", "_", column.strip().lower()).strip("_") for column in header]
    return [dict(zip(columns, (cell.strip() for cell in row), strict=False)) for row in rows]


def participant_of(row: Mapping[str, str], subject: str, path: Path, tell: Tell) -> Participant:
    """What a row says of its subject; a cell that is wrong is told, and counts as empty."""
    return Participant(
        site=cell_of(row, "site"),
        gestational_age_weeks=_age(row, subject, path, tell),
        pathology=_pathology(row),
        split=_split(row, subject, path, tell),
        subject_key=cell_of(row, "subject_key"),
    )


def _pathology(row: Mapping[str, str]) -> str | None:
    """As written: `none` says that there is none, not that nobody knows."""
    cell = row.get("pathology", "")
    return None if cell.lower() in _MISSING else cell


def _age(row: Mapping[str, str], subject: str, path: Path, tell: Tell) -> float | None:
    age = cell_of(row, *AGES)
    weeks = None if age is None else _weeks(age)
    if age is not None and weeks is None:
        column = next(name for name in AGES if row.get(name) == age)
        what = f"subject '{subject}', column {column}: this is not a number of weeks"
        tell(DataError(what, where=str(path), hint="25.4, 25+3 or n/a; or have the columns shifted?"))
    return weeks


def _split(row: Mapping[str, str], subject: str, path: Path, tell: Tell) -> str:
    """The split; training where the cell is empty."""
    split = cell_of(row, "split") or "train"
    if split.lower() not in _SPLIT_NAMES:
        named = f"'{split}'" if _PLAIN_WORD.fullmatch(split) else "this"
        what = f"subject '{subject}', column split: {named} is not a split"
        tell(DataError(what, where=str(path), hint="one of train, validation, test"))
    return _SPLIT_NAMES.get(split.lower(), "train")


def _pair(row: Mapping[str, str], number: int, path: Path, tell: Tell) -> Row | None:
    """A row; None where it names no image that is there."""
    image, labels, mask = _files(row, number, path, tell)
    if image is None:
        return None
    subject = (cell_of(row, "subject", "participant_id") or _guessed_subject(image)).removeprefix("sub-")
    return Row(
        subject=subject,
        session=cell_of(row, "session", "session_id"),
        run=cell_of(row, "run"),
        image=image,
        labels=labels,
        mask=mask,
        participant=participant_of(row, subject, path, tell),
    )


def _files(row: Mapping[str, str], number: int, table: Path, tell: Tell) -> Iterator[Path | None]:
    """Image, labels and mask of a row."""
    for names in (("image",), ("label", "labels"), ("mask",)):
        cell = cell_of(row, *names)
        path = None if cell is None else table.parent / cell
        if cell is None and names == ("image",):
            what = f"row {number} below the header has no image"
            tell(DataError(what, where=str(table), hint="the columns are image,label[,subject,...]"))
        elif cell is not None and path is not None and not path.is_file():
            named = f": {cell}" if _PATH.fullmatch(cell) else ""
            what = f"row {number} below the header, column {names[0]}: there is no such file{named}"
            tell(DataError(what, where=str(table), hint="paths are relative to the CSV's folder"))
            path = None
        yield path


def _says_subject(row: Mapping[str, str]) -> bool:
    """Whether the subject is stated: by a cell, or by `sub-X` in the file's name."""
    return cell_of(row, "subject", "participant_id") is not None or Path(row["image"]).name.startswith("sub-")


def _guessed_subject(image: Path) -> str:
    """`sub-01_T2w.nii` is 01; `anna.nii.gz` is anna; `berta/image.nii.gz` is berta."""
    name = stem(image)
    if name.startswith("sub-"):
        return name.split("_")[0]
    return image.parent.name if name.lower() in _GENERIC else name


def cell_of(row: Mapping[str, str], *names: str) -> str | None:
    """The first cell of these columns that says something; None where none does."""
    for name in names:
        value = row.get(name, "")
        if value.lower() not in {*_MISSING, _NONE}:
            return value
    return None


def _weeks(text: str) -> float | None:
    """Weeks from `25.4`, `25+3` or `25w3d` (weeks and days); None where it is none of them."""
    match = re.fullmatch(r"(\d+)\s*(?:\+|w)\s*(\d)\s*d?", text)
    if match and int(match[2]) < 7:
        return int(match[1]) + int(match[2]) / 7
    if re.fullmatch(r"\d+([.,]\d+)?", text):
        return float(text.replace(",", "."))
    return None
