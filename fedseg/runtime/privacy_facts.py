"""The facts of a privacy report: from a site's own ledger, or from what the coordinator may know.

Epsilon is recomputed from recorded charges, never remembered. `report.facts` is the one model of them, from which
terminal, JSON and page are made; what a site's own screen shows beside is in `privacy_own`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedseg.errors import LedgerError
from fedseg.federation.outgoing import leaving
from fedseg.plan.manifest import Manifest
from fedseg.privacy.accounting import ADJACENCY, accountant_name, cross_check, epsilon, merge
from fedseg.privacy.events import Event
from fedseg.privacy.ledger import Ledger
from fedseg.report.audit_facts import Audit
from fedseg.report.facts import Accounting, Guarantee, PrivacyReport, RoundFacts, SiteFacts, Versions
from fedseg.runtime import privacy_words as words
from fedseg.runtime.audit_result import load_audit
from fedseg.runtime.hospital import Hospital
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
from fedseg.runtime.privacy_trust import Shares, aggregation
from fedseg.runtime.resolution import events_of, past_events
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.audit_log import LogReader, statement
from fedseg.store.audit_records import Countersigned
from fedseg.store.checkpoints import ModelCard, load_model
from fedseg.store.privacy_ledger import LEDGER
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
        perspective: Whose report it is.
        whose: What the claim is about.
        sites: One row a site.
        rounds: One row an attempt.
        spent: What each site's charges come to for a subject that stood in all of its frames once; none where that is
            not known.
        ledger_error: Why a ledger could not be read.
        model_hash: Of the final model, where there is one.
    """

    perspective: Literal["site", "study"]
    whose: str
    sites: tuple[SiteFacts, ...]
    rounds: tuple[RoundFacts, ...]
    spent: Spent
    ledger_error: str | None
    model_hash: str | None


def site_facts(folder: SiteFolder, audit: Path | None = None) -> PrivacyReport:
    """What one site's own ledger says. A broken ledger raises nothing: the report says so.

    Args:
        folder: The site's state.
        audit: An audit.json to show.

    Raises:
        LedgerError: The site has accepted no study, so that there is nothing to report on.
        FedsegError: As `audit_result.load_audit`, or the model file is damaged.
    """
    manifest = accepted(folder)
    card = _card(folder.model)
    member, history = folder.membership, card.contributors if card else ()
    found = _Found(
        perspective="site",
        whose=f"site {member.site}",
        sites=(_constants(manifest, member.site),),
        rounds=closed_rounds(manifest, history),
        spent=(),
        ledger_error=None,
        model_hash=card.model_hash if card else None,
    )
    if not manifest.plan.private:
        return _report(manifest, found, audit)
    try:
        ledger = open_ledger(folder)
        found = replace(
            found,
            sites=(_from_ledger(found.sites[0], manifest, ledger),),
            rounds=site_rounds(ledger, manifest, history),
            spent=(merge(ledger.charges(manifest.study)),),
        )
    except LedgerError as error:
        found = replace(found, sites=(replace(found.sites[0], ledger_intact=False),), ledger_error=str(error))
    return _report(manifest, found, audit)


def study_facts(folder: StudyFolder, audit: Path | None = None) -> PrivacyReport:
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
        perspective="study",
        whose="a site",
        sites=tuple(_as_told(manifest, site, events[site], claims) for site in events),
        rounds=study_rounds(versions, rows, charges),
        spent=tuple(events.values()),
        ledger_error=None,
        model_hash=card.model_hash if card else None,
    )
    return _report(manifest, found, audit)


def _report(manifest: Manifest, found: _Found, audit: Path | None) -> PrivacyReport:
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
        notes=words.notes(manifest, found.perspective, shares),
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
        validation=words.validation(manifest),
        leaves_the_site=tuple(leaving(plan)),
        versions=_versions(manifest),
        tuning=words.TUNING,
        audit=NO_AUDIT if audit is None else load_audit(audit, manifest),
        not_promised=words.NOT_PROMISED,
        residual_risk=words.risks(manifest, shares),
        model_hash=found.model_hash,
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


def _versions(manifest: Manifest) -> Versions:
    plan, parent = manifest.plan, manifest.parent
    delta = plan.privacy.delta
    return Versions(
        parent=parent.plan_hash if parent else None,
        last_round=parent.last_round if parent else None,
        epsilon_before=epsilon(past_events(parent), delta) if parent and plan.private else None,
        rounds=plan.schedule.rounds,
        reserve_rounds=plan.privacy.reserve_rounds,
        epsilon_allowed=epsilon(events_of(manifest), delta) if plan.private else None,
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


def _card(model: Path) -> ModelCard | None:
    """The final model's description, where there is a model."""
    return load_model(model)[1] if model.is_file() else None


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
