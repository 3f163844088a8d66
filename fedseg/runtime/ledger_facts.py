"""What a hospital's privacy ledger says, as values that may leave the hospital: charges, by study.

All of it follows from the plans and from what happened in their rounds: two hospitals that differ in one subject have
the same, but for hashes that nobody else can compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedseg.policy import SitePolicy, parse_policy
from fedseg.privacy.accounting import accountant_name, epsilon
from fedseg.privacy.chain import Record
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.ledger import Ledger
from fedseg.runtime.site_folder import SiteFolder

Facts = dict[str, Any]

FORMAT = "fedseg privacy ledger export 4"
LEFT_OUT = (
    "the keyed hashes of subjects, and the secret that they are keyed with: a charge names every subject in its "
    "sampling frame, this document names none",
    "the number of subjects in any charge; public_subjects is the plan's rounded constant",
    "the largest epsilon of any one subject, in a study or over all of them: it tells whether somebody is in two "
    "studies, or in one under two ids; a study's epsilon here is that of a subject whom all its charges name once",
    "the hour of a charge: the day (UTC) stands here; what lies between two charges would tell how long training took",
    "all records between the charges, their number, and the links of the chain: they tell when a subject was added; "
    "the head is the newest charge's, to be looked for at the hospital with: fedseg client ledger verify --head HEX",
)


class Deltas:
    """At which delta a study's epsilon is computed: its plan's where that is known, else the lifetime's.

    Args:
        folder: The state of a site, for its plan and policy; None for the defaults.

    Attributes:
        lifetime: The policy's delta for all studies together.
        limit: Its lifetime_epsilon; None where it sets none.
        known: Whether a site's policy was read.
    """

    def __init__(self, folder: SiteFolder | None) -> None:
        manifest = None if folder is None else folder.manifest
        text = None if folder is None else folder.membership.policy
        policy = SitePolicy() if text is None else parse_policy(text, "this hospital's policy").content
        self.lifetime, self.limit, self.known = policy.lifetime_delta, policy.lifetime_epsilon, folder is not None
        self._deltas: Mapping[str, float] = {}
        if manifest is not None and manifest.plan.private:
            self._deltas = {manifest.study: manifest.plan.privacy.delta}

    def of(self, study: str) -> float:
        """The delta of one study."""
        return self._deltas.get(study, self.lifetime)


def ledger_facts(ledger: Ledger, deltas: Deltas) -> Facts:
    """Everything charged, by study, with its epsilon recomputed (None: no bound holds); and `charged_head`."""
    studies = dict.fromkeys(charge.study for charge in ledger.charged)
    return {
        "ledger": ledger.identity,
        "head": charged_head(ledger),
        "studies": [_study(ledger, study, deltas.of(study)) for study in studies],
        "countersigned": [note.to_json() for note in ledger.countersigned],
    }


def export_document(ledger: Ledger, deltas: Deltas) -> Facts:
    """The ledger for auditors: `ledger_facts`, and what was left out and why."""
    return {"format": FORMAT, **ledger_facts(ledger, deltas), "left_out": list(LEFT_OUT)}


def charged_head(ledger: Ledger) -> str:
    """The hash of the newest charge, as whoever is no part of the hospital may see it; the opening's before the first.

    Not of the last record: what follows a charge is no secret, so its hash would confirm a guess of how many records
    there are, and so of when a subject was added. A charge's hash covers keyed hashes.
    """
    return [record.hash for record in ledger.records if record.kind in ("open", "charge")][-1]


def _study(ledger: Ledger, study: str, delta: float) -> Facts:
    records = [record for record in ledger.records if record.kind == "charge" and record.body["study"] == study]
    charges = ledger.charges(study)
    bound = epsilon(charges, delta)
    return {
        "study": study,
        "plans": list(dict.fromkeys(charge.plan_hash for charge in charges)),
        "rounds": len({charge.round for charge in charges}),
        "steps": sum(charge.steps for charge in charges),
        "delta": delta,
        "epsilon": bound if math.isfinite(bound) else None,
        "accountant": accountant_name(charges),
        "charges": [_charge(ledger, record) for record in records],
    }


def _charge(ledger: Ledger, record: Record) -> Facts:
    charge = RoundCharge.from_json(record.body)
    facts = {name: value for name, value in charge.to_json().items() if name != "subjects"}
    return facts | {"committed": charge.key in ledger.committed, "day": record.time[:10], "record": record.hash}
