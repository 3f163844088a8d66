"""The tables beside the scans: participants.tsv, and a CSV of pairs.

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

_MISSING = {"", "n/a", "na", "nan", "none", "-"}
_GENERIC = {"image", "img", "t2", "t2w", "scan", "volume", "anat", "srr", "recon"}
_PATH = re.compile(r"\S+\.nii(\.gz)?")
_PLAIN_WORD = re.compile(r"[A-Za-z]{1,20}")
_AGES = ("gestational_age", "gestational_age_weeks", "ga")
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
    """One row of a CSV of pairs, its paths resolved against the CSV's folder."""

    subject: str
    session: str | None
    run: str | None
    image: Path
    labels: Path | None
    mask: Path | None
    participant: Participant


def read_participants(path: Path, tell: Tell = refuse) -> dict[str, Participant]:
    """Read participants.tsv: who is in it, by id without `sub-`. No file is an empty table.

    Columns: `participant_id`; `Gestational age`, `gestational_age` or `gestational_age_weeks` (25.4 or 25+3);
    `Pathology` or `pathology`; `site`; `split`; `subject_key`, the same for all ids of one pregnancy (twins, a patient
    registered twice). A subject may have several rows only if `session_id` tells them apart; its first row counts.

    Args:
        path: The table.
        tell: Told of each fault. Where it returns, the cell counts as empty, the row or the table as not there.

    Raises:
        DataError: From `tell`: the table isn't UTF-8; no `participant_id`; a subject listed twice, in two splits or
            under two subject_keys; an age that is no number; a split that isn't one.
    """
    people: dict[str, Participant] = {}
    seen: set[tuple[str, str]] = set()
    for row in _participant_rows(path, tell):
        subject = row["participant_id"].removeprefix("sub-")
        if not subject:
            continue
        key = (subject, row.get("session_id", ""))
        if key in seen:
            tell(
                DataError(
                    f"two subjects with one id: '{subject}' has two rows",
                    where=str(path),
                    hint="one row a patient; two patients need two ids, two sessions the column session_id",
                )
            )
            continue
        seen.add(key)
        person = _participant(row, subject, path, tell)
        _refuse_other(subject, people.setdefault(subject, person), person, path, tell)
    return people


def _participant_rows(path: Path, tell: Tell) -> list[dict[str, str]]:
    """The rows of participants.tsv that have a cell in the column participant_id."""
    if not path.is_file():
        return []
    try:
        rows = _rows(path, "\t")
    except DataError as error:
        tell(error)
        return []
    named = [row for row in rows if "participant_id" in row]
    if rows and not named:
        what = "there is no column participant_id"
        tell(DataError(what, where=str(path), hint="the first row names the columns; its cells look like sub-01"))
    return named


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
    for number, cells in enumerate(_rows(path, ","), 1):
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
        _refuse_other(row.subject, people.setdefault(row.subject, row.participant), row.participant, path, tell)
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


def _refuse_other(subject: str, first: Participant, other: Participant, path: Path, tell: Tell) -> None:
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
    for row in _rows(path, "," if path.suffix.lower() == ".csv" else "\t"):
        for column, cell in row.items():
            found.setdefault(column, []).append(cell)
    return found


def _rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    """Rows as dicts, column names in lower case with underscores; rows of blanks are left out."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        return []
    header, *rows = csv.reader(lines, delimiter=delimiter)
    columns = [re.sub(r"[^a-z0-9]+", "_", column.strip().lower()).strip("_") for column in header]
    return [dict(zip(columns, (cell.strip() for cell in row), strict=False)) for row in rows]


def _participant(row: Mapping[str, str], subject: str, path: Path, tell: Tell) -> Participant:
    return Participant(
        site=_cell(row, "site"),
        gestational_age_weeks=_age(row, subject, path, tell),
        pathology=_cell(row, "pathology"),
        split=_split(row, subject, path, tell),
        subject_key=_cell(row, "subject_key"),
    )


def _age(row: Mapping[str, str], subject: str, path: Path, tell: Tell) -> float | None:
    age = _cell(row, *_AGES)
    weeks = None if age is None else _weeks(age)
    if age is not None and weeks is None:
        column = next(name for name in _AGES if row.get(name) == age)
        what = f"subject '{subject}', column {column}: this is not a number of weeks"
        tell(DataError(what, where=str(path), hint="25.4, 25+3 or n/a; or have the columns shifted?"))
    return weeks


def _split(row: Mapping[str, str], subject: str, path: Path, tell: Tell) -> str:
    """The split; training where the cell is empty."""
    split = _cell(row, "split") or "train"
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
    subject = (_cell(row, "subject", "participant_id") or _guessed_subject(image)).removeprefix("sub-")
    return Row(
        subject=subject,
        session=_cell(row, "session", "session_id"),
        run=_cell(row, "run"),
        image=image,
        labels=labels,
        mask=mask,
        participant=_participant(row, subject, path, tell),
    )


def _files(row: Mapping[str, str], number: int, table: Path, tell: Tell) -> Iterator[Path | None]:
    """Image, labels and mask of a row."""
    for names in (("image",), ("label", "labels"), ("mask",)):
        cell = _cell(row, *names)
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
    return _cell(row, "subject", "participant_id") is not None or Path(row["image"]).name.startswith("sub-")


def _guessed_subject(image: Path) -> str:
    """`sub-01_T2w.nii` is 01; `anna.nii.gz` is anna; `berta/image.nii.gz` is berta."""
    stem = re.sub(r"\.nii(\.gz)?$", "", image.name)
    if stem.startswith("sub-"):
        return stem.split("_")[0]
    return image.parent.name if stem.lower() in _GENERIC else stem


def _cell(row: Mapping[str, str], *names: str) -> str | None:
    for name in names:
        value = row.get(name, "")
        if value.lower() not in _MISSING:
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
