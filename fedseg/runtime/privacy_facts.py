"""The facts of a privacy report: from a site's own ledger, or from what the coordinator may know.

Epsilon is recomputed from recorded charges, never remembered. `report.facts` is the one model of them, from which
terminal, JSON and page are made; what a site's own screen shows beside is in `privacy_own`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

from fedseg.errors import LedgerError
from fedseg.federation.outgoing import leaving
from fedseg.federation.staying import staying
from fedseg.plan.manifest import Manifest
from fedseg.privacy.accounting import ADJACENCY, accountant_name, cross_check, epsilon, merge
from fedseg.privacy.events import Event
from fedseg.privacy.ledger import Ledger
from fedseg.report.audit_facts import Audit
from fedseg.report.facts import Accounting, Guarantee, PrivacyReport, RoundFacts, SiteFacts
from fedseg.report.privacy_course import Dates, Policy, Versions
from fedseg.runtime import privacy_words as words
from fedseg.runtime.audit_result import load_audit
from fedseg.runtime.ledger_facts import charged_head
from fedseg.runtime.privacy_history import (
    Spent,
    at_deltas,
    at_one_percent,
    at_two_sites,
    attack_rates,
    charges_told,
    closed_rounds,
    event_of,
    rounds_told,
    site_rounds,
    study_rounds,
)
from fedseg.runtime.privacy_origin import file_hash, site_dates, software, study_dates, version_facts
from fedseg.runtime.privacy_site import accepted, open_ledger, privacy_limits
from fedseg.runtime.privacy_trust import Shares, aggregation
from fedseg.runtime.resolution import events_of, past_events
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.checkpoints import ModelCard, load_model
from fedseg.store.study_db import ClaimRow, RoundRow

NO_AUDIT = Audit(
    statement="No audit was given: nothing here has tested the engine. fedseg privacy-audit does; name its audit.json "
    "with --audit.",
    given=False,
)


@dataclass(frozen=True)
class _Found:
    """What one party knows.

    Attributes:
        versions: Of the plan, oldest first.
        agreed: When the site agreed to each (ISO 8601), by its hash; nothing in a study's report.
        policy: The site's limits; None in a study's report.
        perspective: Whose report it is.
        whose: What the claim is about.
        sites: One row a site.
        rounds: One row an attempt.
        spent: What each site's charges come to for a subject that stood in all of its frames once; none where that is
            not known.
        ledger_error: Why a ledger could not be read.
        model: The final model's file, which need not be there.
        model_hash: Of its weights, where it is.
        dates: When this party did what.
    """

    versions: Sequence[Manifest]
    agreed: Mapping[str, str]
    policy: Policy | None
    perspective: Literal["site", "study"]
    whose: str
    sites: tuple[SiteFacts, ...]
    rounds: tuple[RoundFacts, ...]
    spent: Spent
    ledger_error: str | None
    model: Path
    model_hash: str | None
    dates: Dates


def site_facts(folder: SiteFolder, audit: Path | None = None, made: date | None = None) -> PrivacyReport:
    """What one site's own ledger says. A broken ledger raises nothing: the report says so.

    Args:
        folder: The site's state.
        audit: An audit.json to show.
        made: The day (UTC) that the report is made on, if it is to say so.

    Raises:
        LedgerError: The site has accepted no study, so that there is nothing to report on.
        FedsegError: As `audit_result.load_audit`, or the model file is damaged.
    """
    manifest = accepted(folder)
    card = _card(folder.model)
    member, history = folder.membership, card.contributors if card else ()
    versions, agreed = folder.versions, member.agreed
    found = _Found(
        versions=versions,
        agreed=agreed,
        policy=privacy_limits(member.policy),
        perspective="site",
        whose=f"site {member.site}",
        sites=(_constants(manifest, member.site),),
        rounds=closed_rounds(manifest, history),
        spent=(),
        ledger_error=None,
        model=folder.model,
        model_hash=card.model_hash if card else None,
        dates=site_dates(versions, agreed, None, made),
    )
    if not manifest.plan.private:
        return _report(found, audit)
    try:
        ledger = open_ledger(folder)
        found = replace(
            found,
            sites=(_from_ledger(found.sites[0], manifest, ledger),),
            rounds=site_rounds(ledger, manifest, history),
            spent=(merge(ledger.charges(manifest.study)),),
            dates=site_dates(versions, agreed, ledger, made),
        )
    except LedgerError as error:
        found = replace(found, sites=(replace(found.sites[0], ledger_intact=False),), ledger_error=str(error))
    return _report(found, audit)


def study_facts(folder: StudyFolder, audit: Path | None = None, made: date | None = None) -> PrivacyReport:
    """What the coordinator knows: the plan, the rounds, and what sites claim of their ledgers. Arguments as above."""
    versions, db = folder.versions, folder.db
    manifest, claims = versions[-1], db.all_claims()
    rows = [row for row in db.rounds() if not row.evaluation]
    private = manifest.plan.private
    events = {site: _told(versions, site, rows, claims) for site in manifest.plan.site_names}
    most = max(events, key=lambda site: epsilon(events[site], manifest.plan.privacy.delta)) if private else None
    charges = charges_told(versions, most, rows, claims) if most is not None else ()
    card = _card(folder.model)
    found = _Found(
        versions=versions,
        agreed={},
        policy=None,
        perspective="study",
        whose="a site",
        sites=tuple(_as_told(manifest, site, events[site], claims) for site in events),
        rounds=study_rounds(versions, rows, charges),
        spent=tuple(events.values()),
        ledger_error=None,
        model=folder.model,
        model_hash=card.model_hash if card else None,
        dates=study_dates(rows, made),
    )
    return _report(found, audit)


def _report(found: _Found, audit: Path | None) -> PrivacyReport:
    manifest = found.versions[-1]
    plan = manifest.plan
    spent = [site.epsilon for site in found.sites if site.epsilon is not None]
    largest = max(spent) if spent and len(spent) == len(found.sites) else None
    known = plan.private and largest is not None
    shares = Shares.of(manifest, found.spent)
    return PrivacyReport(
        study=plan.name,
        study_id=manifest.study,
        plan_hash=manifest.plan_hash,
        code_version=manifest.code_version,
        perspective=found.perspective,
        privacy=plan.privacy.mode,
        statement=words.claim(manifest, found.whose, largest, shares),
        notes=words.notes(found.versions, found.perspective, shares),
        epsilon=largest,
        ledger_error=found.ledger_error,
        sites=found.sites,
        guarantee=_guarantee(manifest, found) if known else None,
        rounds=found.rounds,
        mechanism=words.mechanism(manifest, shares),
        accounting=_accounting(manifest, found) if known else None,
        aggregation=aggregation(manifest, shares),
        randomness=words.randomness(manifest),
        pretraining=words.pretraining(manifest),
        strategy=words.strategy(manifest),
        validation=words.validation(manifest),
        leaves_the_site=tuple(leaving(plan)),
        stays=tuple(staying(plan)),
        policy=found.policy,
        versions=_versions(found),
        tuning=words.TUNING,
        audit=NO_AUDIT if audit is None else load_audit(audit, manifest),
        not_promised=words.NOT_PROMISED,
        residual_risk=words.risks(manifest, shares),
        model_hash=found.model_hash,
        model_file_hash=file_hash(found.model),
        dates=found.dates,
        software=software(),
    )


def _guarantee(manifest: Manifest, found: _Found) -> Guarantee:
    curve = attack_rates(found.spent)
    return Guarantee(
        name=words.FLAVOUR,
        unit="subject",
        unit_description=words.UNIT,
        adjacency=ADJACENCY,
        not_covered=words.NOT_COVERED,
        epsilon_at=at_deltas(manifest.plan.privacy.delta, found.spent),
        epsilon_at_two_sites=at_two_sites(found.spent, manifest.plan.privacy.delta),
        attacker_at_1_percent=at_one_percent(curve),
        attacker=curve,
    )


def _accounting(manifest: Manifest, found: _Found) -> Accounting:
    paid = [history for history in found.spent if history]
    checks = [cross_check(history, manifest.plan.privacy.delta) for history in paid]
    events = [event for history in paid for event in history] or events_of(manifest)
    steps = max((sum(event.steps for event in history) for history in paid), default=0)
    return words.accounting(events, steps, max(checks, default=None))


def _versions(found: _Found) -> Versions:
    manifest = found.versions[-1]
    plan, parent = manifest.plan, manifest.parent
    delta = plan.privacy.delta
    return Versions(
        parent=parent.plan_hash if parent else None,
        last_round=parent.last_round if parent else None,
        epsilon_before=epsilon(past_events(parent), delta) if parent and plan.private else None,
        rounds=plan.schedule.rounds,
        reserve_rounds=plan.privacy.reserve_rounds,
        epsilon_allowed=epsilon(events_of(manifest), delta) if plan.private else None,
        agreed=version_facts(found.versions, found.agreed),
    )


def _constants(manifest: Manifest, site: str) -> SiteFacts:
    """What the plan says of a site."""
    privacy, public = manifest.plan.privacy, manifest.plan.sites[site].public_subjects
    if not manifest.plan.private:
        return SiteFacts(site)
    return SiteFacts(
        site=site,
        delta=privacy.delta,
        budget_epsilon=privacy.epsilon,
        noise_multiplier=manifest.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
        sampling_rate=privacy.sampling_rate,
        public_subjects=public,
        expected_failures=public * privacy.delta,
        accountant=accountant_name(events_of(manifest)),
    )


def _from_ledger(site: SiteFacts, manifest: Manifest, ledger: Ledger) -> SiteFacts:
    study, delta = manifest.study, manifest.plan.privacy.delta
    charges = ledger.charges(study)
    signed = [note for note in ledger.countersigned if note.study == study]
    return replace(
        site,
        epsilon=epsilon(charges, delta),
        rounds=len(charges),
        steps=sum(charge.steps for charge in charges),
        accountant=accountant_name(charges or events_of(manifest)),
        cross_check=cross_check(charges, delta),
        ledger_intact=True,
        ledger_head=charged_head(ledger),
        countersigned=len(signed),
        countersigned_head=signed[-1].head if signed else None,
        code_versions=tuple(dict.fromkeys(charge.code_version for charge in charges)),
    )


def _told(
    versions: Sequence[Manifest], site: str, rows: Sequence[RoundRow], claims: Sequence[ClaimRow]
) -> tuple[Event, ...]:
    """What a site has spent: `rounds_told`, as events."""
    if not versions[-1].plan.private:
        return ()
    counts = rounds_told(versions, site, rows, claims)
    return merge(event_of(version, count) for version, count in zip(versions, counts, strict=True))


def _as_told(manifest: Manifest, site: str, events: tuple[Event, ...], claims: Sequence[ClaimRow]) -> SiteFacts:
    facts = _constants(manifest, site)
    if not manifest.plan.private:
        return facts
    heads = [claim.head for claim in claims if claim.site == site]
    delta = manifest.plan.privacy.delta
    steps = sum(event.steps for event in events)
    return replace(
        facts,
        epsilon=epsilon(events, delta),
        rounds=steps // manifest.plan.training.steps,
        steps=steps,
        cross_check=cross_check(events, delta),
        countersigned=len(heads),
        countersigned_head=heads[-1] if heads else None,
    )


def _card(model: Path) -> ModelCard | None:
    """The final model's description, where there is a model."""
    return load_model(model)[1] if model.is_file() else None
