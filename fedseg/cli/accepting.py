"""What a hospital accepts at a start of `join`: the plan, its policy as the file says it, and what both may cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedseg.cli.screen import Screen, Stop
    from fedseg.imaging.dataset import Dataset
    from fedseg.plan.manifest import Manifest
    from fedseg.policy import Change, SitePolicy
    from fedseg.privacy.identity import Subject
    from fedseg.runtime.hospital import Hospital
    from fedseg.runtime.prospects import Prospects
    from fedseg.runtime.site_folder import Membership, SiteFolder

ENDS_EARLY = (
    "What is left of a privacy budget here does not last for all rounds to come: this site will leave the study at the "
    "first round that would pass it. How much is left: fedseg client ledger show --ledger {ledger}"
)


def policy_now(folder: SiteFolder) -> Membership:
    """The membership with the policy as its file says it at this moment; nothing is written down.

    Raises:
        PolicyError: The file is no policy.
        UsageError: It cannot be read.
    """
    from fedseg.cli.enrolment import policy_text
    from fedseg.cli.screen import err

    member = folder.membership
    if member.policy_file is None:
        return member
    path = Path(member.policy_file)
    if not path.exists():
        err.print(f"There is no {path} any more: the policy that was read there last holds.", markup=False)
        return member
    return replace(member, policy=policy_text(path))


def accept(
    folder: SiteFolder,
    member: Membership,
    versions: list[Manifest],
    dataset: Dataset,
    yes: bool,
    screen: Screen,
    stop: Stop,
) -> tuple[Subject, ...]:
    """Ask where something has not been agreed to, and write down what was; the subjects that will be charged.

    Asked is for a plan, a version of it, and a policy that accepts more than the one before. A stricter one holds
    without a question. In a private study the ledger is there before the agreement is written down, and never made
    after it.

    Args:
        folder: The site's.
        member: Of `policy_now`.
        versions: Of `agreement.agree`.
        dataset: The site's scans.
        yes: Whether nobody is to be asked.
        screen: Where bars and questions go.
        stop: Ends them; what is written down is written down whole.

    Raises:
        Interrupted: By Ctrl-C; nothing was agreed to.
        BudgetError: What the study may still cost does not fit a budget; nothing was charged.
        LedgerError: The ledger is missing or broken, or nobody would find it again.
    """
    from fedseg.runtime.hospital import Hospital

    agreed, manifest = folder.manifest, versions[-1]
    hospital = Hospital(Path(member.data), Path.home())
    if agreed is None and manifest.plan.private:
        hospital.require_findable(Path(member.ledger))
    changed = [] if agreed is None else _changes(folder.membership, member)
    with stop.at_once():
        frame = frame_of(manifest, dataset, screen)
        found = _prospects(manifest, member, frame, hospital)
        screen.pause(lambda: _ask(agreed, manifest, member, dataset, changed, found, yes))
    if agreed is None and manifest.plan.private:
        hospital.first_ledger(Path(member.ledger), frame)
    _write_down(folder, member, agreed, versions)
    return frame


def frame_of(manifest: Manifest, dataset: Dataset, screen: Screen) -> tuple[Subject, ...]:
    """The subjects that a private study charges, as their scans are; none in another one."""
    from fedseg.runtime.charging import sampling_frame

    if not manifest.plan.private:
        return ()
    return sampling_frame(dataset, lambda done, of: screen.bar("reading scans for the ledger", done, of))


def policy_of(member: Membership) -> SitePolicy:
    """A hospital's policy, or the default one."""
    from fedseg.cli.files import load_policy

    return load_policy(member.policy, member.policy_file or "this hospital's policy").content


def _prospects(
    manifest: Manifest, member: Membership, frame: tuple[Subject, ...], hospital: Hospital
) -> Prospects | None:
    from fedseg.runtime.prospects import prospects

    if not manifest.plan.private:
        return None
    ledger = hospital.begun_ledger(Path(member.ledger))
    return prospects(manifest, member.site, frame, ledger, policy_of(member))


def _changes(before: Membership, after: Membership) -> list[Change]:
    from fedseg.policy import policy_changes

    return policy_changes(policy_of(before), policy_of(after))


def _ask(
    agreed: Manifest | None,
    manifest: Manifest,
    member: Membership,
    dataset: Dataset,
    changed: list[Change],
    found: Prospects | None,
    yes: bool,
) -> None:
    from fedseg.cli.consent import consent, consent_to_extension
    from fedseg.cli.screen import err

    if changed:
        _show_changes(changed, member)
    if agreed is None:
        consent(manifest, member, dataset, yes, found)
    elif agreed.plan_hash != manifest.plan_hash:
        consent_to_extension(agreed, manifest, member, yes, found)
    elif any(change.laxer for change in changed):
        consent(manifest, member, dataset, yes, found, "Go on under the changed policy?")
    elif found is not None and (changed or not found.under_way):
        found.require()
    elif found is not None and not found.fits:
        err.print(ENDS_EARLY.format(ledger=quote(member.ledger)), markup=False)


def _show_changes(changed: list[Change], member: Membership) -> None:
    from rich.table import Table

    from fedseg.cli.screen import err

    err.print(f"This hospital's policy ({member.policy_file}) has changed since it was agreed to:", markup=False)
    table = Table("", "before", "from here on", "", box=None, pad_edge=False)
    for change in changed:
        laxer = "accepts more: asked for" if change.laxer else "holds at once"
        table.add_row(change.key, _shown(change.before), _shown(change.after), laxer)
    err.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(value)
    return "unset" if value is None else f"{value:g}"


def _write_down(folder: SiteFolder, member: Membership, agreed: Manifest | None, versions: list[Manifest]) -> None:
    from fedseg.store.journal import utc_now

    manifest = versions[-1]
    dates = dict(folder.membership.agreed)
    dates.setdefault(manifest.plan_hash, utc_now())
    folder.remember(replace(folder.membership, policy=member.policy, agreed=dates))
    if agreed is None:
        folder.accept(manifest)
    elif agreed.plan_hash != manifest.plan_hash:
        folder.extend(versions)
