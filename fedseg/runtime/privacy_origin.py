"""When a study was agreed to and charged, which file its model is, and what software reports on it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedseg import __version__
from fedseg.plan.manifest import Manifest
from fedseg.privacy.ledger import Ledger
from fedseg.report.privacy_course import Dates, VersionFacts
from fedseg.store.files import storage_errors
from fedseg.store.study_db import RoundRow

_PACKAGES = ("torch", "opacus", "dp-accounting")


def site_dates(
    versions: Iterable[Manifest], agreed: Mapping[str, str], ledger: Ledger | None, made: date | None
) -> Dates:
    """Those of a site.

    Args:
        versions: Of the plan, oldest first.
        agreed: When each was agreed to (ISO 8601), by its hash.
        ledger: The hospital's; None where the study has no privacy, or it cannot be read.
        made: The day of the report.
    """
    known = list(versions)
    days = [_day(agreed.get(each.plan_hash)) for each in known]
    charged = [] if ledger is None else _charged(ledger, known[-1].study)
    return Dates(
        agreed=next((day for day in days if day), None),
        agreed_version=days[-1] if len(days) > 1 else None,
        first_attempt=min(charged, default=None),
        last_attempt=max(charged, default=None),
        made=_iso(made),
    )


def version_facts(versions: Iterable[Manifest], agreed: Mapping[str, str]) -> tuple[VersionFacts, ...]:
    """Every version of a plan, and the day it was agreed to; arguments as of `site_dates`."""
    return tuple(
        VersionFacts(
            plan_hash=each.plan_hash,
            budget_epsilon=each.plan.privacy.epsilon if each.plan.private else None,
            rounds=each.plan.schedule.rounds,
            reserve_rounds=each.plan.privacy.reserve_rounds,
            agreed=_day(agreed.get(each.plan_hash)),
        )
        for each in versions
    )


def study_dates(rows: Iterable[RoundRow], made: date | None) -> Dates:
    """Those of a study's server: of the attempts in its book, and of the report."""
    days = [datetime.fromtimestamp(row.started_at, UTC).date().isoformat() for row in rows]
    return Dates(first_attempt=min(days, default=None), last_attempt=max(days, default=None), made=_iso(made))


def software() -> dict[str, str]:
    """What makes a report here: fedseg, Python, and what trains and accounts."""
    return {"fedseg": __version__, "python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file's bytes, in hex; None where there is no file.

    Raises:
        StorageError: It cannot be read.
    """
    if not path.is_file():
        return None
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _charged(ledger: Ledger, study: str) -> list[str]:
    times = [record.time for record in ledger.records if record.kind == "charge" and record.body["study"] == study]
    return [day for time in times if (day := _day(time)) is not None]


def _day(time: str | None) -> str | None:
    """The day of a time in ISO 8601; None where there is none."""
    return time[:10] if time else None


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
