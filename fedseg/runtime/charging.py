"""One study's use of the hospital's privacy ledger."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from shlex import quote

from fedseg import __version__
from fedseg.errors import DataError, LedgerError
from fedseg.federation.exchange import LedgerClaim
from fedseg.imaging.content import voxel_hash
from fedseg.imaging.dataset import Case, Dataset
from fedseg.plan.manifest import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.identity import Subject
from fedseg.runtime import events
from fedseg.runtime.ledger_facts import charged_head
from fedseg.runtime.session import noise_share
from fedseg.store.privacy_ledger import HospitalLedger

OnScan = Callable[[int, int], None]
"""Called with (scans done, scans in all)."""


def sampling_frame(dataset: Dataset, on_scan: OnScan) -> tuple[Subject, ...]:
    """Every privacy unit that a study samples from at this site, as its ledger is to know it: all scans are read.

    Raises:
        DataError: if one cannot be.
    """
    units = dataset.units("train")
    total, done = sum(map(len, units.values())), 0
    frame = []
    for cases in units.values():
        hashes = []
        for case in cases:
            hashes.append(voxel_hash(case.image))
            done += 1
            on_scan(done, total)
        frame.append(_subject(cases, tuple(hashes)))
    return tuple(frame)


def _subject(cases: Collection[Case], hashes: tuple[bytes, ...]) -> Subject:
    (key,) = {case.subject_key for case in cases}
    return Subject(tuple(sorted({case.subject for case in cases})), key, hashes)


def require_unchanged(before: tuple[Subject, ...], after: tuple[Subject, ...], state: Path) -> None:
    """Refuse scans that were replaced between two readings: the ledger would charge other ones than train.

    Args:
        before: The frame that the ledger knows.
        after: The frame once everything was prepared.
        state: The site's folder, for the hint.

    Raises:
        DataError: They differ.
    """
    if before != after:
        raise DataError(
            "scans were replaced since this site read them for its ledger; nothing was trained",
            hint=f"to check and read them again: fedseg client join --state {quote(str(state))}",
        )


class StudyCharger:
    """Charges a study's rounds; a `runtime.ports.Charger`.

    Args:
        ledger: The hospital's ledger.
        manifest: The study.
        site: This site's name in it.
        policy: For the lifetime budget.
        frame: Every subject in the sampling frame, drawn or not.
        notify: Told of each charge.
    """

    def __init__(
        self,
        ledger: HospitalLedger,
        manifest: Manifest,
        site: str,
        *,
        policy: SitePolicy,
        frame: Collection[Subject],
        notify: events.Notify,
    ) -> None:
        self._ledger, self._manifest, self._site, self._notify = ledger, manifest, site, notify
        self._links = tuple(map(ledger.keys_of, frame))
        delta = manifest.plan.privacy.delta
        self._budget = (manifest.plan.privacy.epsilon or 0.0, delta)
        self._lifetime = None if policy.lifetime_epsilon is None else (policy.lifetime_epsilon, policy.lifetime_delta)

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        """See `runtime.ports.Charger`."""
        if self._ledger.ledger.is_charged(self._manifest.study, round_number, attempt):
            return False
        charge = self._charge_of(round_number, attempt, model)
        self._ledger.charge(charge, study_budget=self._budget, lifetime_budget=self._lifetime, links=self._links)
        spent = self._ledger.spent(self._manifest.study, self._budget[1])
        self._notify(events.Charged(round_number, spent, self._budget[0]))
        return True

    def _charge_of(self, round_number: int, attempt: int, model: str) -> RoundCharge:
        plan, sigma, share = self._manifest.plan, self._manifest.noise_multiplier, noise_share(self._manifest)
        if sigma is None:
            raise LedgerError("a private study without a noise multiplier cannot be charged")
        return RoundCharge(
            study=self._manifest.study,
            plan_hash=self._manifest.plan_hash,
            site=self._site,
            round=round_number,
            attempt=attempt,
            model_hash=model,
            code_version=__version__,
            noise_multiplier=sigma,
            sampling_rate=plan.privacy.sampling_rate,
            steps=plan.training.steps,
            public_subjects=plan.sites[self._site].public_subjects,
            max_grad_norm=plan.privacy.max_grad_norm,
            mechanism="gaussian" if share is None else "skellam",
            sensitivity=0.0 if share is None else share.sensitivity,
            dimension=0 if share is None else share.dimension,
            subjects=tuple(link[0] for link in self._links),
        )

    def commit(self, round_number: int, attempt: int) -> None:
        """See `runtime.ports.Charger`."""
        self._ledger.commit(self._manifest.study, round_number, attempt)

    def claim(self) -> LedgerClaim:
        """See `runtime.ports.Charger`."""
        ledger = self._ledger.ledger
        charges = ledger.charges(self._manifest.study)
        return LedgerClaim(len(charges), sum(charge.steps for charge in charges), charged_head(ledger))

    def check_countersigned(self, head: str | None) -> None:
        """See `runtime.ports.Charger`."""
        if head is not None:
            self._ledger.require_head(head)

    def note_countersigned(self, head: str, signature: bytes) -> None:
        """See `runtime.ports.Charger`."""
        self._ledger.countersign(self._manifest.study, self._site, head, signature)
