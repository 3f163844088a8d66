"""One study's use of the hospital's privacy ledger."""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.errors import LedgerError
from fedseg.federation.exchange import LedgerClaim
from fedseg.plan import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.events import RoundCharge
from fedseg.runtime import events
from fedseg.store.privacy_ledger import HospitalLedger


class StudyCharger:
    """Charges a study's rounds; a `runtime.ports.Charger`.

    Args:
        ledger: The hospital's ledger.
        manifest: The study.
        site: This site's name in it.
        policy: For the lifetime budget.
        subjects: Ids of every subject in the sampling frame, drawn or not.
        notify: Told of each charge.
    """

    def __init__(
        self,
        ledger: HospitalLedger,
        manifest: Manifest,
        site: str,
        *,
        policy: SitePolicy,
        subjects: Sequence[str],
        notify: events.Notify,
    ) -> None:
        self._ledger, self._manifest, self._site, self._notify = ledger, manifest, site, notify
        self._keys = tuple(sorted({ledger.subject_key(subject) for subject in subjects}))
        delta = manifest.plan.privacy.delta
        self._budget = (manifest.plan.privacy.epsilon or 0.0, delta)
        self._lifetime = None if policy.lifetime_epsilon is None else (policy.lifetime_epsilon, policy.lifetime_delta)

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        """See `runtime.ports.Charger`."""
        plan, sigma = self._manifest.plan, self._manifest.noise_multiplier
        if sigma is None:
            raise LedgerError("a private study without a noise multiplier cannot be charged")
        if self._ledger.ledger.is_charged(self._manifest.study, round_number, attempt):
            return False
        charge = RoundCharge(
            study=self._manifest.study,
            plan_hash=self._manifest.plan_hash,
            site=self._site,
            round=round_number,
            attempt=attempt,
            model_hash=model,
            noise_multiplier=sigma,
            sampling_rate=plan.privacy.sampling_rate,
            steps=plan.training.steps,
            public_subjects=plan.sites[self._site].public_subjects,
            max_grad_norm=plan.privacy.max_grad_norm,
            subjects=self._keys,
        )
        self._ledger.charge(charge, study_budget=self._budget, lifetime_budget=self._lifetime)
        spent = self._ledger.spent(self._manifest.study, self._budget[1])
        self._notify(events.Charged(round_number, spent, self._budget[0]))
        return True

    def commit(self, round_number: int, attempt: int) -> None:
        """See `runtime.ports.Charger`."""
        self._ledger.commit(self._manifest.study, round_number, attempt)

    def claim(self) -> LedgerClaim:
        """See `runtime.ports.Charger`."""
        ledger = self._ledger.ledger
        charges = ledger.charges(self._manifest.study)
        return LedgerClaim(len(charges), sum(charge.steps for charge in charges), ledger.head)
