"""Whether a whole study fits what is left of a hospital's budgets: asked before anybody agrees, and nothing is charged.

Without it a limit refuses a round in the middle of a study, when the other sites have spent theirs for nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fedseg.plan.manifest import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.identity import Link, Subject, spelling
from fedseg.privacy.ledger import check_delta
from fedseg.privacy.outlook import Outlook, look_ahead
from fedseg.runtime.resolution import events_ahead, steps_in_all
from fedseg.store.privacy_ledger import HospitalLedger

_HINT = (
    "ask the coordinator for a smaller epsilon or fewer rounds, leave subjects that have spent much out of the split "
    "train, or have the owner of this hospital's policy raise lifetime_epsilon"
)


@dataclass(frozen=True)
class Prospects:
    """What a study may take from the subjects that train here. It depends on single subjects: for the site's screen.

    Attributes:
        study: Of the plan's own budget, by this study's charges.
        lifetime: Of the policy's, by all charges of the hospital; no limit where the policy sets none.
        under_way: Whether something was charged under this version of the plan.
        public_subjects: N0 of the site.
    """

    study: Outlook
    lifetime: Outlook
    under_way: bool
    public_subjects: int

    @property
    def fits(self) -> bool:
        """Whether every round to come is within both."""
        return self.study.fits and self.lifetime.fits

    def require(self) -> None:
        """Refuse a study that could not be carried to its end.

        Raises:
            BudgetError: It passes one of the budgets, or the policy's delta is above the cap.
        """
        if self.lifetime.limit is not None:
            check_delta(self.lifetime.delta, self.public_subjects, "this hospital's lifetime")
        self.study.require("this study's", "talk to the coordinator")
        self.lifetime.require("this hospital's lifetime", _HINT)


def prospects(
    manifest: Manifest, site: str, frame: Collection[Subject], ledger: HospitalLedger | None, policy: SitePolicy
) -> Prospects:
    """What a private study may take.

    Args:
        manifest: The study.
        site: This site's name in it.
        frame: The subjects that would be charged (`charging.sampling_frame`).
        ledger: The hospital's; None where it has begun none.
        policy: The hospital's.

    Raises:
        LedgerError: The ledger is broken.
    """
    book = None if ledger is None else ledger.ledger
    everything = () if book is None else book.charged
    mine = () if book is None else book.charges(manifest.study)
    known = () if book is None else book.links
    keys = [_unkeyed(subject) if ledger is None else ledger.keys_of(subject) for subject in frame]
    charged = _steps_under(manifest, mine)
    ahead = events_ahead(manifest, steps_in_all(manifest.plan, manifest.parent) - charged)
    privacy = manifest.plan.privacy
    return Prospects(
        look_ahead(mine, known, keys, ahead, (privacy.epsilon, privacy.delta)),
        look_ahead(everything, known, keys, ahead, (policy.lifetime_epsilon, policy.lifetime_delta)),
        under_way=charged > 0,
        public_subjects=manifest.plan.sites[site].public_subjects,
    )


def _steps_under(manifest: Manifest, charges: Collection[RoundCharge]) -> int:
    return sum(charge.steps for charge in charges if charge.plan_hash == manifest.plan_hash)


def _unkeyed(subject: Subject) -> Link:
    """What a ledger would know a subject by, before there is a secret to key it with. It stays in memory."""
    names = [f"unit {spelling(subject.key)}"] if subject.key is not None else []
    names += [f"id {spelling(name)}" for name in subject.ids]
    return (*names, *(scan.hex() for scan in subject.scans))
