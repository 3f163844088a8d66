"""A privacy report as sections of text, tables and curves: what both the terminal and the page show.

Every number is formatted here and nowhere else, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.report.facts import (
    Accounting,
    Guarantee,
    Mechanism,
    PrivacyReport,
    RoundFacts,
)
from fedseg.report.numbers import NOTHING, number, percent, printed
from fedseg.report.privacy_charts import attacker_chart, spending_chart
from fedseg.report.privacy_parts import Fact, Section, Table
from fedseg.report.privacy_record import audit, choices, limits, outgoing, provenance, staying

SHOWN_RATES = (0.001, 0.01, 0.1)
NAMES = (
    "N0: subjects of a site as the plan says it, a public, rounded number. N0 delta: so many of them, on average and "
    "at most, may be without protection. Charges: attempts at rounds, each counted in full."
)
SYMBOLS = (
    "Attempt: one try at a round, with a charge of its own. sigma: noise multiplier; q: chance of a subject to be "
    "drawn for a step; T: steps; C: clip."
)
CHARGED = ("charged", "sigma", "q", "T", "C", "epsilon after it")


def headline(report: PrivacyReport) -> Fact:
    """What was spent, and who says so."""
    if report.epsilon is not None:
        source = "largest of the sites, by their claims" if report.perspective == "study" else "from the site's ledger"
        return f"Epsilon {printed(report.epsilon)}", source
    if report.privacy == "off":
        return "Privacy is off", "no epsilon bounds what can be learned"
    return "Epsilon is not known", "a ledger is missing or broken"


def sections(report: PrivacyReport) -> tuple[Section, ...]:
    """The whole report, in order."""
    return (
        *_claim(report),
        _sites(report),
        *(_promised(report.guarantee) if report.guarantee else ()),
        *_rounds(report),
        *((_mechanism(report.mechanism),) if report.mechanism else ()),
        *((_accounting(report.accounting),) if report.accounting else ()),
        _trust(report),
        *((Section("Randomness", report.randomness),) if report.randomness else ()),
        choices(report),
        *((limits(report.policy),) if report.policy is not None else ()),
        *((outgoing(report.leaves_the_site),) if report.leaves_the_site else ()),
        *((staying(report.stays),) if report.stays else ()),
        audit(report),
        Section("What this does not promise", points=report.not_promised),
        Section("Residual risk, for a data protection impact assessment", points=report.residual_risk),
        provenance(report),
    )


def _claim(report: PrivacyReport) -> tuple[Section, ...]:
    broken = (
        () if report.ledger_error is None else (Section("Ledger", (f"LEDGER: {report.ledger_error}",), warning=True),)
    )
    unprotected = report.privacy != "off" and report.pretraining.protection == "none"
    return (Section("The claim", (report.statement, *report.notes), warning=unprotected), *broken)


def _sites(report: PrivacyReport) -> Section:
    intact = {True: "intact", False: "BROKEN", None: "at the site"}
    if report.privacy == "off":
        return Section("Sites", table=Table(("site",), tuple((site.site,) for site in report.sites)))
    rows = tuple(
        (
            site.site,
            printed(site.epsilon),
            number(site.budget_epsilon),
            number(site.delta),
            number(site.public_subjects),
            number(site.expected_failures),
            number(site.rounds),
            number(site.steps),
            intact[site.ledger_intact],
        )
        for site in report.sites
    )
    head = ("site", "epsilon", "budget", "delta", "N0", "N0 delta", "charges", "steps", "ledger")
    return Section("Sites", (NAMES,), table=Table(head, rows, frozenset({8})))


def _promised(guarantee: Guarantee) -> tuple[Section, ...]:
    facts = (
        ("guarantee", guarantee.name),
        ("unit", f"{guarantee.unit}: {guarantee.unit_description}"),
        ("neighbouring data sets", guarantee.adjacency),
        ("a subject at two sites of this study", f"epsilon {printed(guarantee.epsilon_at_two_sites)}"),
    )
    at = tuple((f"{each.delta:g}", printed(each.epsilon)) for each in guarantee.epsilon_at)
    return (
        Section("What is promised", facts=facts, table=Table(("delta", "epsilon"), at)),
        Section("What the promise does not cover", points=guarantee.not_covered),
        _attackers(guarantee),
    )


def _attackers(guarantee: Guarantee) -> Section:
    rates = {each.false_positive: each.true_positive for each in guarantee.attacker}
    rows = tuple((percent(rate), percent(rates[rate]), percent(rate)) for rate in SHOWN_RATES)
    at_one = percent(guarantee.attacker_at_1_percent)
    words = (
        "An attacker has everything that was sent and every scan but one patient's, and guesses whether that patient "
        f"took part. Wrong about 1% of the absent, no attacker is right about more than {at_one} of those present."
    )
    head = ("false positives", "true positives at most", "by guessing")
    chart = attacker_chart(guarantee)
    return Section("What an attacker gains at most", (words,), table=Table(head, rows), chart=chart)


def _rounds(report: PrivacyReport) -> tuple[Section, ...]:
    if not report.rounds:
        return ()
    private = report.privacy != "off"
    rows = tuple(_round(row, private) for row in report.rounds)
    head = ("round", "attempt", "state", "in the sum", *(CHARGED if private else ()))
    counts = ", ".join(f"{count} {state}" for state, count in _counted(report.rounds).items())
    words = [f"Attempts: {counts}.", *((SYMBOLS,) if private else ())]
    if private and report.perspective == "site":
        words.append(
            "Every charge counts in full: also that of a round that was dropped, void, or cut off by a crash after it "
            "(handed over, charged only)."
        )
    if not all(row.exact for row in report.rounds):
        words.append("In a history as long as this some rounds show the epsilon of a later one, which is no less.")
    table = Table(head, rows, frozenset({2, 3, 4}))
    chart = spending_chart(report)
    return (Section("Rounds", tuple(words), table=table, points=_losses(report.rounds), chart=chart),)


def _round(row: RoundFacts, private: bool) -> tuple[str, ...]:
    known = (number(row.round), number(row.attempt), row.state, ", ".join(row.contributors) or NOTHING)
    if not private:
        return known
    charged = {True: "yes", False: "no", None: "at the site"}[row.charged]
    after = NOTHING if row.epsilon_after is None else printed(row.epsilon_after)
    constants = (row.noise_multiplier, row.sampling_rate, row.steps, row.max_grad_norm)
    return (*known, charged, *map(number, constants), after if row.exact else f"at most {after}")


def _counted(rounds: Sequence[RoundFacts]) -> dict[str, int]:
    states = [row.state for row in rounds]
    return {state: states.count(state) for state in dict.fromkeys(states)}


def _losses(rounds: Sequence[RoundFacts]) -> tuple[str, ...]:
    return tuple(
        f"Round {row.round}{'' if row.attempt is None else f', attempt {row.attempt}'} ({row.state}): "
        f"lost {'all sites' if site == '*' else site}: {why}"
        for row in rounds
        for site, why in (row.lost or {}).items()
    )


def _mechanism(found: Mechanism) -> Section:
    shared = (
        ("honest contributors assumed, h", number(found.honest_others)),
        ("colluding sites assumed at most, c", number(found.colluders)),
        ("other contributors that may pool or leave out their noise, max(c, 1)", number(found.tolerated)),
        ("units of the ring in 1, S", number(found.scale)),
        ("integer sensitivity, D2", number(found.integer_sensitivity)),
        ("epsilon where one contributor more does", printed(found.epsilon_one_more)),
        ("epsilon of one site's share alone", printed(found.epsilon_alone)),
    )
    facts = (
        ("mechanism", found.name),
        ("noise", found.noise),
        ("noise multiplier, sigma", number(found.noise_multiplier)),
        ("clipping", found.clipping),
        ("clip, C", number(found.max_grad_norm)),
        ("sampling", found.sampling),
        ("sampling rate, q", number(found.sampling_rate)),
        ("steps a round, T", number(found.steps)),
        ("divisor", found.divisor),
        ("sensitivity", found.sensitivity),
        ("a subject at several sites", found.several_sites),
        ("parameters that are clipped and noised", number(found.noised)),
        ("parameters that are sent, d", number(found.dimension)),
    )
    return Section("Mechanism", facts=facts + (shared if found.tolerated is not None else ()))


def _accounting(found: Accounting) -> Section:
    facts = (
        ("accountant", f"{found.accountant}: {found.accountant_description}"),
        ("cross-check", f"epsilon {printed(found.cross_check)}: {found.cross_check_description}"),
        ("composition", found.composition),
        ("post-processing", found.post_processing),
    )
    return Section("Accounting", facts=facts)


def _trust(report: PrivacyReport) -> Section:
    found = report.aggregation
    two = () if found.two_contributors is None else (found.two_contributors,)
    why = () if found.accepted_because is None else (f"The plan accepts it because: {found.accepted_because}",)
    facts = (
        ("if secure aggregation holds", found.trust_with_masks),
        ("without it, or if it fails", found.trust_without_masks),
    )
    return Section(
        "Whom one has to trust",
        (found.statement, *two, *why),
        facts=tuple((name, text) for name, text in facts if text is not None),
    )
