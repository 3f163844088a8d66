"""Where a study stands, by its book and its log alone: no server is asked, and none is disturbed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedseg.errors import UsageError
from fedseg.runtime.study import StudyFolder
from fedseg.store.files import exclusive, storage_errors
from fedseg.store.study_db import InviteRow, RoundRow

TAIL_BYTES = 4096


@dataclass(frozen=True)
class SiteStatus:
    """What the book knows of a site.

    Attributes:
        site: Its name.
        enrolled: When it enrolled last (UTC); None before.
        invite: How its newest invite stands, where it has not enrolled.
        contributed: The newest closed round, or evaluation, that it is in; None where there is none.
        contributed_at: When that was closed (UTC).
        lost: The newest attempt that it was lost in, by its round.
        has_model: Whether it holds the final model of the plan in force.
    """

    site: str
    enrolled: str | None
    invite: str
    contributed: int | None
    contributed_at: str | None
    lost: int | None
    has_model: bool


@dataclass(frozen=True)
class Status:
    """Where a study stands. It holds no secret, and nothing of a patient.

    Attributes:
        name: Of the plan.
        study: Identifier.
        plan_hash: Of the version in force.
        server_runs: Whether a process holds the study's folder.
        rounds: How many the plan wants closed.
        closed: How many are, evaluations not counted.
        evaluations: How many evaluations are closed.
        complete: Whether the final model is there.
        waits_for: What has to happen next; None where the study is complete.
        sites: In the plan's order.
        last_words: The newest line of the server's log; None where there is none.
    """

    name: str
    study: str
    plan_hash: str
    server_runs: bool
    rounds: int
    closed: int
    evaluations: int
    complete: bool
    waits_for: str | None
    sites: tuple[SiteStatus, ...]
    last_words: str | None


def status_of(study: StudyFolder) -> Status:
    """Where a study stands.

    Raises:
        StorageError: The folder cannot be read.
    """
    manifest, book = study.manifest, study.db.rounds()
    closed = [row for row in book if row.state == "closed"]
    enrolled = study.db.enrolled_at()
    holders, complete = study.db.finished(manifest.plan_hash), study.model.is_file()
    begun = [row for row in book if row.round > (manifest.parent.last_round if manifest.parent else 0)]
    names = manifest.plan.site_names
    return Status(
        name=manifest.plan.name,
        study=manifest.study,
        plan_hash=manifest.plan_hash,
        server_runs=_is_held(study),
        rounds=manifest.plan.schedule.rounds,
        closed=sum(not row.evaluation for row in closed),
        evaluations=sum(row.evaluation for row in closed),
        complete=complete,
        waits_for=_waits_for(names, enrolled, begun, holders if complete else None),
        sites=tuple(_site(site, enrolled, study.db.invites(), book, site in holders) for site in names),
        last_words=_last_line(study),
    )


def _site(
    site: str, enrolled: dict[str, float], invites: Sequence[InviteRow], book: Sequence[RoundRow], has_model: bool
) -> SiteStatus:
    there = [row for row in book if row.state == "closed" and site in row.contributors]
    lost = [row.round for row in book if site in row.lost]
    return SiteStatus(
        site,
        _utc(enrolled[site]) if site in enrolled else None,
        _invite([row for row in invites if row.site == site and row.used_at is None]),
        there[-1].round if there else None,
        _utc(there[-1].ended_at) if there and there[-1].ended_at is not None else None,
        lost[-1] if lost else None,
        has_model,
    )


def _invite(unused: Sequence[InviteRow]) -> str:
    return f"invited, until {_utc(max(row.expires_at for row in unused))}" if unused else "not invited yet"


def _waits_for(
    names: Sequence[str], enrolled: Collection[str], begun: Sequence[RoundRow], holders: Collection[str] | None
) -> str | None:
    """What comes next; `holders` have the final model, None before there is one.

    Who has confirmed the roster only the sites know, until they take part.
    """
    strangers = [site for site in names if site not in enrolled]
    if strangers:
        return f"{', '.join(strangers)} to enrol"
    if not begun:
        return "every site to confirm the roster and join; the server's log says whom it has not heard of"
    newest = begun[-1]
    title = "the evaluation" if newest.evaluation else f"round {newest.round}"
    if newest.state in ("open", "unmasking"):
        return f"{title}, attempt {newest.attempt}, to end"
    if holders is None:
        return f"the next round; {title} was {newest.state}"
    late = [site for site in names if site not in holders]
    return f"{', '.join(late)} to fetch the model" if late else None


def _is_held(study: StudyFolder) -> bool:
    try:
        with exclusive(study.root):
            return False
    except UsageError:
        return True


def _last_line(study: StudyFolder) -> str | None:
    if not study.log.is_file():
        return None
    with storage_errors(study.log):
        lines = study.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").splitlines()
    return lines[-1] if lines else None


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
