"""What a site gives at its first `join`: checked before the invite is used up, changed until the study is agreed to.

The policy's file may be named, or changed, at any time: `accepting` says what then holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from fedseg.errors import UsageError

if TYPE_CHECKING:
    from fedseg.runtime.site_folder import SiteFolder


def amend(folder: SiteFolder, data: Path | None, labels: str | None, policy: Path | None, ledger: Path | None) -> None:
    """Change what was given at the first `join`: the policy's file at any time, the rest until the study is agreed to.

    Raises:
        UsageError: if it has been, and more than the policy is given.
        PolicyError: if the file is no policy.
    """
    from fedseg.runtime.hospital import Hospital

    if policy is not None:
        policy_text(policy)
        folder.remember(replace(folder.membership, policy_file=str(policy.resolve())))
    given = {"data": data, "labels": labels, "ledger": ledger}
    changed = [name for name, value in given.items() if value is not None]
    if not changed:
        return
    if folder.manifest is not None:
        hint = f"go on with: fedseg client join --state {quote(str(folder.root))}"
        raise UsageError(f"--{changed[0]} cannot be changed once the study is agreed to", hint=hint)
    member = folder.membership
    scans = Path(member.data) if data is None else data.resolve()
    hospital = Hospital(scans, Path.home())
    folder.remember(
        replace(
            member,
            data=str(scans),
            labels=_labels(labels) or member.labels,
            ledger=str(hospital.ledger_folder(ledger) if ledger else hospital.kept_ledger(Path(member.ledger))),
        )
    )


def _labels(given: str | None) -> str | None:
    """What was given with --labels, checked; a file by its full path."""
    from fedseg.imaging.label_tables import given_table

    given_table(given)
    return str(Path(given).resolve()) if given is not None and Path(given).is_file() else given


def policy_text(path: Path) -> str:
    """A policy's text, checked."""
    from fedseg.cli.files import load_policy, read_text

    text = read_text(path, "policy")
    load_policy(text, str(path))
    return text


def first_time(
    folder: SiteFolder, text: str, data: Path | None, labels: str | None, policy: Path | None, ledger: Path | None
) -> Callable[[], None]:
    """Check everything that can be checked here; returns the enrolment itself, which uses the invite up."""
    from fedseg.cli.files import require_folder
    from fedseg.cli.screen import err
    from fedseg.rpc.invites import Invite
    from fedseg.runtime.hospital import Hospital

    if data is None:
        raise UsageError("--data is missing", hint="name this site's BIDS folder: --data BIDS_DIR")
    invite = Invite.decode(text)
    folder.refuse_other_study(invite)
    require_folder(data, "folder")
    agreed = None if policy is None else policy_text(policy)
    invite.require_unexpired(time.time())
    place = Hospital(data, Path.home()).ledger_folder(ledger)
    if place.is_relative_to(folder.root.resolve()):
        hint = "one ledger serves all studies: name a folder that outlives this one"
        raise UsageError("the ledger cannot lie in the state folder", where=str(place), hint=hint)
    where, table = data.resolve(), _labels(labels)

    def enrol() -> None:
        folder.enrol(invite, data=where, labels=table, ledger=place, policy=agreed, now=time.time())
        if policy is not None:
            folder.remember(replace(folder.membership, policy_file=str(policy.resolve())))
        err.print(f"Enrolled as {invite.site}; this site's keys are in {folder.root / 'keys'}", markup=False)

    return enrol
