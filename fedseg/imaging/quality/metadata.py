"""What the tables say of a subject: its gestational age."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedseg.imaging.quality.finding import Remark

AGE_WEEKS = (18.0, 40.0)
_UNREAD_AGES = ("age", "scan_age", "birth_age", "age_at_scan", "age_weeks", "pma", "ga_weeks", "ga_days")


def check_age(weeks: float | None) -> Iterator[Remark]:
    """Gestational age: there, and that of a fetus. Its number is not shown."""
    if weeks is None:
        hint = "scores by age need it: column gestational_age of participants.tsv, in weeks (25.4 or 25+3)"
        yield Remark("no-age", "note", "no gestational age", hint)
    elif not AGE_WEEKS[0] <= weeks <= AGE_WEEKS[1]:
        in_days = AGE_WEEKS[0] <= weeks / 7 <= AGE_WEEKS[1]
        hint = "it looks like days: divide by 7" if in_days else "expected 18 to 40: weeks, not days or months"
        detail = "in days" if in_days else "out of range"
        yield Remark("age", "warning", "gestational age out of range", hint, detail)


def check_age_column(columns: Mapping[str, Sequence[str]]) -> Iterator[Remark]:
    """Ages in a column that is not read, as its unit and meaning are not sure."""
    if {"gestational_age", "gestational_age_weeks", "ga"} & set(columns):
        return
    found = [column for column in _UNREAD_AGES if column in columns]
    if found:
        hint = "if it is gestational age in weeks, name the column gestational_age"
        yield Remark("age-column", "note", f"the column {', '.join(found)} is not read as gestational age", hint)
