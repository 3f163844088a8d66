"""What a check says: of one scan, one file, or the whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedseg.errors import DataError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Remark:
    """One thing to know, before it is said whom it is about.

    Args:
        kind: Which check: a short word, the same in every version.
        severity: `error`: training on it is refused; `warning`: a person should look; `note`: odd, but taken care of.
        what: What was found, worded alike for every scan that it is true of.
        hint: What to do about it, or an empty text.
        detail: The figures of this scan, or an empty text. Neither holds anything that a header or table says of a
            person: fields are named, never quoted.
    """

    kind: str
    severity: Severity
    what: str
    hint: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Finding(Remark):
    """One thing to know about one file.

    Args:
        subject: The subject's id, or an empty text where it is about the data set.
        scan: The scan's name, as `sub-01_rec-srr`, or an empty text.
        file: Its path on this machine.
    """

    subject: str = ""
    scan: str = ""
    file: str = ""


def finding(remark: Remark, *, file: str, subject: str = "", scan: str = "") -> Finding:
    """A remark, with whom it is about."""
    return Finding(**vars(remark), subject=subject, scan=scan, file=file)


def refused(kind: str, error: DataError) -> Remark:
    """An error as a remark."""
    return Remark(kind, "error", error.what, error.hint or "")


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Each once: errors first, then by kind and scan."""
    return sorted(
        set(findings), key=lambda each: (SEVERITIES.index(each.severity), each.kind, each.what, each.scan, each.file)
    )


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many scans (or files) each kind of error and warning was found in: all that may be told outside the site.

    No id, no file, no value: `{"error/other-grid": 2, "warning/age": 1}`.
    """
    seen = {(each.severity, each.kind, each.scan or each.file) for each in findings}
    found = Counter(f"{severity}/{kind}" for severity, kind, _ in seen)
    return dict(sorted(found.items()))
