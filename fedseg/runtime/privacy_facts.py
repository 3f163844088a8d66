"""The facts of a privacy report: from a site's own ledger, or from what the coordinator may know.

One model of the facts for terminal, JSON and HTML. Epsilon is recomputed from recorded events, never remembered. The
true number of subjects stands in no field of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedseg.errors import LedgerError
from fedseg.plan import Manifest
from fedseg.privacy.accounting import ACCOUNTANT, ADJACENCY, epsilon, site_epsilon
from fedseg.privacy.ledger import Ledger
from fedseg.runtime.session import thresholds_of
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.checkpoints import load_model
from fedseg.store.privacy_ledger import HospitalLedger
from fedseg.store.study_db import RoundRow

Facts = dict[str, Any]

NOT_COVERED = (
    "that a site takes part, when it answers, and how long it takes",
    "failures, refusals and their reasons, from a fixed list that names no patient",
    "the number of subjects in the plan (public_subjects), which is a public, rounded constant",
    "anything that a person at the site tells or sends by other means",
)
TWO = (
    "Quorum of two: a round could end with two contributors. Each of the two can subtract its own update from the "
    "published sum and so read the other's; the server could with the help of one of them. Only each site's own "
    "privacy noise, if any, protects its update from the other contributor."
)
OFF = (
    "Privacy is off: this study trains without differential privacy. The model may remember single subjects, and no "
    "epsilon bounds what can be learned about them."
)


def site_facts(folder: SiteFolder) -> Facts:
    """The facts as one site's own ledger has them. Never raises for a broken ledger: it says so."""
    manifest = folder.manifest
    if manifest is None:
        raise LedgerError(
            "this site has not accepted a study yet", where=str(folder.root), hint="fedseg client join --state DIR"
        )
    member = folder.membership
    row = _row(manifest, member.site)
    broken = None
    if manifest.plan.private:
        try:
            row |= _from_ledger(manifest, _open(Path(member.ledger)))
        except LedgerError as error:
            broken = str(error)
            row |= {"epsilon": None, "ledger_intact": False}
    rounds = [
        {
            "round": number,
            "state": "closed",
            "contributors": list(sites),
            "lost": {name: "its update is not in the sum" for name in manifest.plan.site_names if name not in sites},
        }
        for number, sites in _history(folder)
    ]
    return _facts(manifest, [row], rounds) | {"perspective": "site", "ledger_error": broken}


def study_facts(folder: StudyFolder) -> Facts:
    """The facts as the coordinator knows them: the plan, the rounds, and what sites claim of their ledgers."""
    manifest, db = folder.manifest, folder.db
    closed = [row for row in db.rounds() if row.state == "closed"]
    claims = db.claims()
    rows = []
    for site in manifest.plan.site_names:
        row = _row(manifest, site)
        if manifest.plan.private:
            claim = claims.get(site)
            charged = max(claim.rounds if claim else 0, sum(site in done.contributors for done in closed))
            row |= _spent(manifest, charged, max(claim.steps if claim else 0, charged * manifest.plan.training.steps))
        rows.append(row)
    return _facts(manifest, rows, [_round(row) for row in db.rounds()]) | {"perspective": "study", "ledger_error": None}


def _facts(manifest: Manifest, rows: list[Facts], rounds: Sequence[Facts]) -> Facts:
    plan = manifest.plan
    spent = [row["epsilon"] for row in rows if row["epsilon"] is not None]
    largest = max(spent) if spent and len(spent) == len(rows) else None
    return {
        "study": plan.name,
        "study_id": manifest.study,
        "plan_hash": manifest.plan_hash,
        "privacy": plan.privacy.mode,
        "statement": _statement(manifest, largest),
        "epsilon": largest,
        "sites": rows,
        "rounds": list(rounds),
        "aggregation": _aggregation(manifest),
        "not_covered": list(NOT_COVERED),
        "adjacency": ADJACENCY,
        "code_version": manifest.code_version,
    }


def _statement(manifest: Manifest, largest: float | None) -> str:
    plan = manifest.plan
    if not plan.private:
        return OFF
    if largest is None:
        return (
            "What was spent is not known: a privacy ledger is missing or broken. "
            "Nothing is promised until it is restored."
        )
    return (
        "Whoever sees what the sites sent, the models included, can tell whether any one subject took part at most as "
        f"well as epsilon {printed(largest)} at delta {plan.privacy.delta:g} allows; the plan's budget is epsilon "
        f"{plan.privacy.epsilon:g}. A subject treated at two sites adds up both. Figures in a study's report are what "
        "its sites have told; only a site can check its own ledger."
    )


def printed(epsilon: float | None) -> str:
    """Epsilon with three digits, rounded up: a promise is never printed smaller than it is."""
    if epsilon is None:
        return "unknown"
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _row(manifest: Manifest, site: str) -> Facts:
    privacy, private = manifest.plan.privacy, manifest.plan.private
    return {
        "site": site,
        "unit": "subject",
        "epsilon": None,
        "delta": privacy.delta if private else None,
        "noise_multiplier": manifest.noise_multiplier,
        "max_grad_norm": privacy.max_grad_norm if private else None,
        "sampling_rate": privacy.sampling_rate if private else None,
        "steps": None,
        "rounds": None,
        "budget_epsilon": privacy.epsilon,
        "accountant": ACCOUNTANT if private else None,
        "ledger_intact": None,
        "public_subjects": manifest.plan.sites[site].public_subjects if private else None,
    }


def _spent(manifest: Manifest, rounds: int, steps: int) -> Facts:
    """What so many steps cost; only the site itself can check its ledger."""
    privacy, sigma = manifest.plan.privacy, manifest.noise_multiplier
    if sigma is None or steps == 0:
        return {"rounds": rounds, "steps": steps, "epsilon": 0.0}
    spent = epsilon([(sigma, privacy.sampling_rate, steps)], privacy.delta)
    return {"rounds": rounds, "steps": steps, "epsilon": spent}


def _from_ledger(manifest: Manifest, ledger: Ledger) -> Facts:
    charges = ledger.charges(manifest.study)
    delta = manifest.plan.privacy.delta
    return {
        "rounds": len(charges),
        "steps": sum(charge.steps for charge in charges),
        "epsilon": site_epsilon(charges, delta),
        "lifetime_epsilon": site_epsilon(ledger.charges(None), delta),
        "ledger_intact": True,
        "ledger_head": ledger.head,
    }


def _open(folder: Path) -> Ledger:
    ledger = HospitalLedger.open(folder)
    ledger.verify()
    return ledger.ledger


def _history(folder: SiteFolder) -> list[tuple[int, tuple[str, ...]]]:
    """The closed rounds, as the model file at this site has them."""
    if not folder.model.is_file():
        return []
    return list(load_model(folder.model)[1].contributors)


def _round(row: RoundRow) -> Facts:
    return {
        "round": row.round,
        "attempt": row.attempt,
        "state": row.state,
        "contributors": list(row.contributors),
        "lost": dict(row.lost),
    }


def _aggregation(manifest: Manifest) -> Facts:
    plan = manifest.plan
    limits = thresholds_of(plan, manifest.quorum)
    secure = plan.aggregation.mode == "secure"
    helpers = f"at most {limits.c} of the sites help it" if limits.c else "no site helps it"
    words = (
        f"Secure aggregation: a server, even one that breaks the protocol, sees only sums over at least "
        f"{manifest.quorum} of {len(plan.sites)} sites, as long as {helpers}."
        if secure
        else "Plain aggregation: the server sees every site's own update."
    )
    return {
        "mode": plan.aggregation.mode,
        "quorum": manifest.quorum,
        "collusion": limits.c if secure else None,
        "threshold": limits.t if secure else None,
        "statement": words,
        "two_contributors": TWO if manifest.quorum == 2 else None,
        "accepted_because": plan.aggregation.accept_two_contributors,
    }
