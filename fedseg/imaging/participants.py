"""participants.tsv and sub-X_sessions.tsv: who the subjects are, and what is said of each of their sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.tables import AGES, Participant, Tell, cell_of, participant_of, refuse, refuse_other, rows_of

_ID, _SESSION = "participant_id", "session_id"

_COLUMNS = {
    "site": ("site",),
    "gestational_age_weeks": AGES,
    "pathology": ("pathology",),
    "split": ("split",),
    "subject_key": ("subject_key",),
}

_Rows = dict[tuple[str, str], Participant]


@dataclass(frozen=True)
class People:
    """What tables say of subjects and of their sessions.

    Args:
        subjects: By id without `sub-`: the subject's first row.
        rows: By subject and session without `ses-`; the session is empty in a row for all of a subject's.
    """

    subjects: Mapping[str, Participant] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], Participant] = field(default_factory=dict)

    def of(self, subject: str, session: str | None) -> Participant:
        """What is known of a subject in a session: its own row, else the row for all sessions.

        Without either, split and subject_key are the subject's all the same, and nothing else is known: a fetus is
        another age at each session.
        """
        known = self.rows.get((subject, session or "")) or self.rows.get((subject, ""))
        if known is None and subject in self.subjects:
            first = self.subjects[subject]
            return Participant(split=first.split, subject_key=first.subject_key)
        return known or Participant()


def read_participants(path: Path, tell: Tell = refuse) -> People:
    """Read participants.tsv, and every `sub-X/sub-X_sessions.tsv` beside it. No file is an empty table.

    Columns: `participant_id`; `Gestational age`, `gestational_age` or `gestational_age_weeks` (25.4 or 25+3);
    `Pathology` or `pathology`; `site`; `split`; `subject_key`, the same for all ids of one pregnancy (twins, a patient
    registered twice). A subject may have several rows only if `session_id` tells them apart. A sessions.tsv has
    `session_id` and any of these columns; what it does not have is as in participants.tsv.

    Args:
        path: The participants.tsv.
        tell: Told of each fault. Where it returns, the cell counts as empty, the row or the table as not there.

    Raises:
        DataError: From `tell`: a table isn't UTF-8; no `participant_id` or `session_id`; a subject (or session) listed
            twice, a subject in two splits or under two subject_keys; an age that is no number; a split that isn't one.
    """
    subjects: dict[str, Participant] = {}
    rows: _Rows = {}
    for row in _named_rows(path, _ID, tell):
        subject, session = _key(row)
        if (subject, session) in rows:
            what = f"two subjects with one id: '{subject}' has two rows"
            hint = "one row a patient; two patients need two ids, two sessions the column session_id"
            tell(DataError(what, where=str(path), hint=hint))
        elif subject:
            person = rows[subject, session] = participant_of(row, subject, path, tell)
            refuse_other(subject, subjects.setdefault(subject, person), person, path, tell)
    for table in sorted(path.parent.glob("sub-*/sub-*_sessions.tsv")):
        for key, person in _sessions(table, rows, tell).items():
            rows[key] = person
            refuse_other(key[0], subjects.setdefault(key[0], person), person, table, tell)
    return People(subjects, rows)


def _sessions(table: Path, rows: Mapping[tuple[str, str], Participant], tell: Tell) -> _Rows:
    """What a subject's sessions.tsv says, laid over what participants.tsv says of the session, or the subject."""
    subject = table.parent.name.removeprefix("sub-")
    found: _Rows = {}
    for row in _named_rows(table, _SESSION, tell):
        key = _key(row | {_ID: subject})
        if key in found:
            tell(DataError(f"subject '{subject}' has two rows for one session", where=str(table), hint="remove one"))
        elif key[1]:
            own, below = participant_of(row, subject, table, tell), rows.get(key) or rows.get((subject, ""))
            said = [name for name, columns in _COLUMNS.items() if not row.keys().isdisjoint(columns)]
            found[key] = replace(below or Participant(), **{name: getattr(own, name) for name in said})
    return found


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    """Subject and session of a row, each without its prefix; the session is empty where it has none."""
    return (row[_ID].removeprefix("sub-"), (cell_of(row, _SESSION) or "").removeprefix("ses-"))


def _named_rows(path: Path, column: str, tell: Tell) -> list[dict[str, str]]:
    """The rows of a table that have a cell in a column."""
    if not path.is_file():
        return []
    try:
        rows = rows_of(path, "\t")
    except DataError as error:
        tell(error)
        return []
    named = [row for row in rows if column in row]
    if rows and not named:
        example = "sub-01" if column == _ID else "ses-1"
        what = f"there is no column {column}"
        tell(DataError(what, where=str(path), hint=f"the first row names the columns; its cells look like {example}"))
    return named
