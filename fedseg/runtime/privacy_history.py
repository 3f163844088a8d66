"""What charges cost, round by round, and what they let an attacker do: the curves of a privacy report."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from fedseg.errors import LedgerError
from fedseg.plan.manifest import Manifest
from fedseg.privacy.accounting import attacker_curve, epsilon, repeated
from fedseg.privacy.events import Event, RoundCharge
from fedseg.privacy.ledger import Ledger
from fedseg.report.facts import AtDelta, AttackRate, RoundFacts, State
from fedseg.runtime.session import noise_share
from fedseg.store.study_db import ClaimRow, RoundRow

DELTAS = (1e-4, 1e-5, 1e-6, 1e-8)
"""Epsilon is shown at these beside the plan's own."""

RATES = tuple(round(10 ** (power / 6 - 4), 6) for power in range(25))
"""False-positive rates of the curve: six a decade, from 1e-4 to 1."""

ONE_PERCENT = 0.01

MOST_EXACT = 40
"""Rounds whose epsilon is computed one by one: each takes about a seventh of a second."""

NOT_IN_SUM = "its update is not in the sum"

History = Sequence[tuple[int, tuple[str, ...]]]
"""(round, contributors) of closed rounds."""


Spent = Collection[tuple[Event, ...]]
"""What fell on each of several subjects, merged. Their curves may cross: then none is the worst everywhere."""

Charges = Sequence[Sequence[Event]]
"""What fell on a site in each attempt of the server's book."""


def largest_epsilon(spent: Spent, delta: float) -> float:
    """The largest of any of these histories; 0 where there is none."""
    return max((epsilon(history, delta) for history in set(spent)), default=0.0)


def at_deltas(delta: float, spent: Spent) -> tuple[AtDelta, ...]:
    """The largest epsilon at the plan's delta and at others, largest delta first."""
    return tuple(AtDelta(each, largest_epsilon(spent, each)) for each in sorted({delta, *DELTAS}, reverse=True))


def attack_rates(spent: Spent) -> tuple[AttackRate, ...]:
    """The best true-positive rate, at each false-positive rate, against whichever history does worst there."""
    curves = [attacker_curve(history, RATES) for history in {(), *spent}]
    return tuple(AttackRate(rate, max(best)) for rate, *best in zip(RATES, *curves, strict=True))


def at_one_percent(rates: Sequence[AttackRate]) -> float:
    """The true-positive rate of `attack_rates` at 1% false positives."""
    return rates[RATES.index(ONE_PERCENT)].true_positive


def at_two_sites(spent: Spent, delta: float) -> float:
    """Epsilon of a subject that two sites have been charged for alike.

    Gaussian noise is each site's own, so that the charges compose. In a pooled step the subject stands in the frame
    twice.
    """
    return largest_epsilon([_twice(history) for history in spent], delta)


def _twice(history: Sequence[Event]) -> tuple[Event, ...]:
    both = (repeated(event, 2) if event.skellam else event._replace(steps=2 * event.steps) for event in history)
    return tuple(both)


def site_rounds(ledger: Ledger, manifest: Manifest, history: History) -> tuple[RoundFacts, ...]:
    """Every charged attempt of a study, and closed rounds that this site was not charged for.

    Epsilon is that of a subject that stood in each frame once: whether one stands in it twice is nobody else's to know.

    Args:
        ledger: Of the site.
        manifest: The study.
        history: Closed rounds, as the model file has them; empty while there is none.
    """
    charges, closed = ledger.charges(manifest.study), dict(history)
    delta = manifest.plan.privacy.delta
    spent = prefixes(len(charges), lambda many: epsilon(charges[:many], delta))
    last = {charge.round: charge.attempt for charge in charges}
    rows = [
        _charged(charge, _state(charge, ledger, last, closed), closed.get(charge.round, ()), *after, manifest)
        for charge, after in zip(charges, spent, strict=True)
    ]
    rows += closed_rounds(manifest, [each for each in history if each[0] not in last])
    return tuple(sorted(rows, key=lambda row: row.round))


def closed_rounds(manifest: Manifest, history: History) -> tuple[RoundFacts, ...]:
    """Closed rounds without a charge: this site took no part, or the study has no privacy."""
    charged = False if manifest.plan.private else None
    return tuple(
        RoundFacts(number, None, "closed", charged, sites, _lost(manifest, sites)) for number, sites in history
    )


def study_rounds(versions: Sequence[Manifest], rows: Sequence[RoundRow], charges: Charges) -> tuple[RoundFacts, ...]:
    """Every attempt as the server's book has it; epsilon is what one site's charges come to.

    It stands at each attempt that the site was charged for, and at the newest, where it is the report's own.

    Args:
        versions: Of the plan, oldest first.
        rows: The book.
        charges: Of `charges_told`, of the site that has spent most; one entry a row where the study is private.
    """
    if not versions[-1].plan.private:
        return tuple(_in_book(row) for row in rows)
    delta = versions[-1].plan.privacy.delta
    after = prefixes(len(rows), lambda many: epsilon([event for each in charges[:many] for event in each], delta))
    shown = [spent if paid else None for spent, paid in zip(after, charges, strict=True)]
    return tuple(
        _of_plan(_in_book(row), version_of(versions, row.round), spent)
        for row, spent in zip(rows, [*shown[:-1], *after[-1:]], strict=True)
    )


def rounds_told(
    versions: Sequence[Manifest], site: str, rows: Sequence[RoundRow], claims: Sequence[ClaimRow]
) -> tuple[int, ...]:
    """How often a site was charged under each version: what it claims, and at least once for each closed round."""
    own = [claim for claim in claims if claim.site == site]
    counts, before = [], 0
    for version in versions:
        claimed = max((claim.rounds for claim in own if claim.plan == version.plan_hash), default=before)
        closed = sum(_contributed(site, row) and version_of(versions, row.round) is version for row in rows)
        counts.append(max(closed, claimed - before))
        before = claimed
    return tuple(counts)


def charges_told(
    versions: Sequence[Manifest], site: str, rows: Sequence[RoundRow], claims: Sequence[ClaimRow]
) -> Charges:
    """The charges of `rounds_told`, by the row of the book that each fell on; all of them where there is a row.

    A charge falls on a round that was closed with the site, or on an attempt that it claims; one that no row explains
    falls on its version's newest row, or on the book's newest.
    """
    claimed = {(claim.round, claim.attempt) for claim in claims if claim.site == site}
    charges: list[list[Event]] = [[] for _ in rows]
    for version, count in zip(versions, rounds_told(versions, site, rows, claims) if rows else (), strict=False):
        own = [place for place, row in enumerate(rows) if version_of(versions, row.round) is version]
        closed = [place for place in own if _contributed(site, rows[place])]
        others = [place for place in own if (rows[place].round, rows[place].attempt) in claimed]
        paid = list(dict.fromkeys([*closed, *others]))[:count]
        for place in paid:
            charges[place].append(event_of(version, 1))
        if count > len(paid):
            charges[own[-1] if own else -1].append(event_of(version, count - len(paid)))
    return charges


def _contributed(site: str, row: RoundRow) -> bool:
    return row.state == "closed" and site in row.contributors


def version_of(versions: Sequence[Manifest], round_number: int) -> Manifest:
    """The version of a plan that a round was begun under."""
    newest_first = reversed(versions)
    return next(each for each in newest_first if each.parent is None or each.parent.last_round < round_number)


def event_of(version: Manifest, rounds: int) -> Event:
    """What so many rounds under a version of a private plan cost a subject."""
    plan, share = version.plan, noise_share(version)
    if version.noise_multiplier is None:
        raise LedgerError("a private study without a noise multiplier")
    steps = rounds * plan.training.steps
    return Event(version.noise_multiplier, plan.privacy.sampling_rate, steps, share.noise if share else None)


def prefixes(count: int, of: Callable[[int], float]) -> list[tuple[float, bool]]:
    """Epsilon after each of `count` charges, and whether it is that charge's own.

    Of a long history some are computed, the last among them; the others have the next one's, which is no less.
    """
    if count == 0:
        return []
    stride = math.ceil(count / MOST_EXACT)
    computed = {many: of(many) for many in range(count, 0, -stride)}
    ends = [min(end for end in computed if end >= many) for many in range(1, count + 1)]
    return [(computed[end], end == many) for many, end in enumerate(ends, start=1)]


def _state(charge: RoundCharge, ledger: Ledger, last: dict[int, int], closed: dict[int, tuple[str, ...]]) -> State:
    if charge.attempt == last[charge.round] and charge.site in closed.get(charge.round, ()):
        return "closed"
    return "handed over" if charge.key in ledger.committed else "charged only"


def _charged(
    charge: RoundCharge, state: State, sites: tuple[str, ...], after: float, exact: bool, manifest: Manifest
) -> RoundFacts:
    contributors = sites if state == "closed" else ()
    return RoundFacts(
        round=charge.round,
        attempt=charge.attempt,
        state=state,
        charged=True,
        contributors=contributors,
        lost=_lost(manifest, contributors),
        plan_hash=charge.plan_hash,
        noise_multiplier=charge.noise_multiplier,
        sampling_rate=charge.sampling_rate,
        steps=charge.steps,
        max_grad_norm=charge.max_grad_norm,
        epsilon_after=after,
        exact=exact,
    )


def _lost(manifest: Manifest, contributors: tuple[str, ...]) -> dict[str, str]:
    """Who is missing from a sum; nobody where the sum is not known."""
    return {name: NOT_IN_SUM for name in manifest.plan.site_names if contributors and name not in contributors}


def _in_book(row: RoundRow) -> RoundFacts:
    return RoundFacts(row.round, row.attempt, row.state, None, row.contributors, dict(row.lost))


def _of_plan(row: RoundFacts, version: Manifest, spent: tuple[float, bool] | None) -> RoundFacts:
    """The row with its plan's constants, and what was spent after it."""
    after, exact = spent if spent is not None else (None, True)
    return replace(
        row,
        plan_hash=version.plan_hash,
        noise_multiplier=version.noise_multiplier,
        sampling_rate=version.plan.privacy.sampling_rate,
        steps=version.plan.training.steps,
        max_grad_norm=version.plan.privacy.max_grad_norm,
        epsilon_after=after,
        exact=exact,
    )
