"""What of a site's folder a privacy report is made of: the plan, the hospital's ledger and its policy."""

from __future__ import annotations

from pathlib import Path

from fedseg.errors import LedgerError
from fedseg.plan.manifest import Manifest
from fedseg.policy import PRIVACY_KEYS, SitePolicy, parse_policy
from fedseg.privacy.ledger import Ledger
from fedseg.report.privacy_course import Policy
from fedseg.runtime.hospital import Hospital
from fedseg.runtime.site_folder import SiteFolder
from fedseg.store.audit_log import LogReader, statement
from fedseg.store.audit_records import Countersigned
from fedseg.store.privacy_ledger import LEDGER


def accepted(folder: SiteFolder) -> Manifest:
    """The study that a site has accepted.

    Raises:
        LedgerError: There is none, so that there is nothing to report on.
    """
    if folder.manifest is None:
        raise LedgerError(
            "this site has not accepted a study yet", where=str(folder.root), hint="fedseg client join --state DIR"
        )
    return folder.manifest


def privacy_limits(text: str | None) -> Policy:
    """What a hospital's policy, as text, says of its patients' privacy; of none, the defaults."""
    limits = SitePolicy() if text is None else parse_policy(text, "this hospital's policy").content
    return Policy(text is not None, {key: getattr(limits, key) for key in PRIVACY_KEYS})


def open_ledger(folder: SiteFolder) -> Ledger:
    """The hospital's ledger, wherever it has moved since the site joined.

    Raises:
        LedgerError: It is missing or broken, or was set back: it lacks a countersigned head of the site's own log.
    """
    member = folder.membership
    ledger = Hospital(Path(member.data), Path.home()).open_ledger(Path(member.ledger))
    ledger.verify()
    found = ledger.ledger
    for head in _countersigned(folder):
        found.require_head(head, str(ledger.folder / LEDGER))
    return found


def _countersigned(folder: SiteFolder) -> tuple[str, ...]:
    """Every head in the site's own log, which may be written meanwhile; none where there is no log yet."""
    if not folder.audit.exists():
        return ()
    bodies = (statement(record) for record in LogReader(folder.audit) if record.kind == "countersigned")
    mine = (body.head for body in bodies if isinstance(body, Countersigned) and body.site == folder.membership.site)
    return tuple(dict.fromkeys(mine))
