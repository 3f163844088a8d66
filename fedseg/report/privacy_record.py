"""The second half of a privacy report: what was chosen and agreed to, what leaves and stays, the audit, the origins."""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.federation.outgoing import Outgoing
from fedseg.federation.staying import Staying
from fedseg.report.facts import PrivacyReport, SiteFacts
from fedseg.report.numbers import NOTHING, number, printed
from fedseg.report.privacy_course import Dates, Policy, Versions
from fedseg.report.privacy_parts import Fact, Section, Table


def choices(report: PrivacyReport) -> Section:
    """What the plan chose beside its noise, and what was agreed to when."""
    versions, first = report.versions, report.pretraining
    facts = [
        ("first model", f"{first.trained_on} ({first.model_hash[:16]})"),
        *([("whose word that is", first.source)] if first.source is not None else []),
        ("strategy", report.strategy),
        ("validation", report.validation),
        ("rounds planned", f"{versions.rounds}, and {versions.reserve_rounds} in reserve"),
    ]
    if versions.epsilon_allowed is not None:
        facts.append(("all of these would cost", f"epsilon {printed(versions.epsilon_allowed)}"))
        facts.append(("tuning", report.tuning))
    if versions.parent is not None:
        before = f", which cost at most epsilon {printed(versions.epsilon_before)}" if versions.epsilon_before else ""
        facts.append(("extends", f"plan {versions.parent[:16]} after round {versions.last_round}{before}"))
    return Section("Choices of the plan, and its versions", facts=tuple(facts), table=_agreed(versions))


def _agreed(versions: Versions) -> Table:
    """What each version promised; when it was agreed to where this party knows."""
    dated = any(each.agreed for each in versions.agreed)
    rows = tuple(
        (
            each.plan_hash[:16],
            number(each.budget_epsilon),
            number(each.rounds),
            number(each.reserve_rounds),
            *((each.agreed or NOTHING,) if dated else ()),
        )
        for each in versions.agreed
    )
    head = ("version", "budget", "rounds", "in reserve", *(("agreed to on",) if dated else ()))
    return Table(head, rows, frozenset({4} if dated else ()))


def limits(policy: Policy) -> Section:
    """What the hospital accepts, whoever runs a study."""
    written = "as the policy that was agreed to last says them" if policy.written else "by default: it wrote no policy"
    spelled = {True: "true", False: "false", None: "unset"}
    facts = tuple(
        (key, spelled[value] if isinstance(value, bool | None) else number(value))
        for key, value in policy.limits.items()
    )
    return Section("The hospital's own limits", (f"What it accepts, whoever runs a study, {written}.",), facts=facts)


def staying(found: Sequence[Staying]) -> Section:
    """What training leaves at a site."""
    words = ("None of it is sent. It lies in the site's state folder, but for the ledger.",)
    return Section("What stays at a site", words, points=tuple(f"{e.name}: {e.what}; {e.until}" for e in found))


def outgoing(found: Sequence[Outgoing]) -> Section:
    """What leaves a site."""
    told = tuple(
        f"{each.classification}: {each.what} ({each.name}): {each.why}"
        for each in found
        if each.classification != "nothing personal"
    )
    others = dict.fromkeys(each.name for each in found if each.classification == "nothing personal")
    words = (
        "Everything that a site sends, and what can be seen of it beside. Accounted: epsilon covers it. Declared: it "
        "may tell something that nothing bounds.",
    )
    rest = (f"nothing personal: {', '.join(others)}",) if others else ()
    return Section("What leaves a site", words, points=(*told, *rest))


def audit(report: PrivacyReport) -> Section:
    """What tested the engine, and whether that engine is the one that trained."""
    found = report.audit
    if not found.given:
        return Section("Audit of the engine", (found.statement,))
    facts = (
        ("result", "every probe passed" if found.passed else "CAUGHT: at least one probe failed"),
        ("engine", f"fedseg {found.code_version}"),
        ("epsilon claimed for the audited steps", f"{printed(found.claimed_epsilon)} over {number(found.steps)} steps"),
        ("proven at least", number(found.lower_bound)),
        ("proven at least, if the noise is Gaussian", number(found.lower_bound_gaussian)),
        ("the most that could have been proven", number(found.largest_provable)),
        ("canaries", number(found.trials)),
        ("confidence", number(found.confidence)),
    )
    asked = (f"{'passed' if probe.passed else 'FAILED'}: {probe.name}: {probe.detail}" for probe in found.probes)
    inverted = (
        f"inversion of a made-up gradient, {each.name}: correlation {each.correlation:.2f}, {each.psnr_db:.1f} dB"
        for each in found.inversion
    )
    other = _not_audited(report)
    words, wrong = (found.statement, *other), not found.passed or bool(other)
    return Section("Audit of the engine", words, facts, points=(*asked, *inverted), warning=wrong)


def _not_audited(report: PrivacyReport) -> tuple[str, ...]:
    """What an audit says nothing of: rounds that another version of the engine trained."""
    trained = {version for site in report.sites for version in site.code_versions}
    if others := sorted(trained - {str(report.audit.code_version)}):
        return (
            f"The audited engine is fedseg {report.audit.code_version}. By the ledger rounds were trained by fedseg "
            f"{' and '.join(others)}: of these the audit says nothing.",
        )
    return ()


def provenance(report: PrivacyReport) -> Section:
    """Hashes, days and versions."""
    facts = [
        ("study", f"{report.study} ({report.study_id})"),
        ("plan hash", report.plan_hash),
        ("plan resolved by", f"fedseg {report.code_version}"),
        ("trained by", _trained_by(report)),
        ("final model, its weights", report.model_hash or "none yet"),
        ("final model, SHA-256 of the file", report.model_file_hash or "none yet"),
        *_dates(report.dates, report.perspective),
        ("report made by", ", ".join(f"{name} {version}" for name, version in report.software.items())),
    ]
    facts += [fact for site in report.sites for fact in _heads(site)]
    return Section("Provenance", ("Dates are days in UTC.",), facts=tuple(facts))


def _trained_by(report: PrivacyReport) -> str:
    if report.perspective == "study" or report.privacy == "off":
        return "known at each site alone"
    return ", ".join(f"fedseg {version}" for site in report.sites for version in site.code_versions) or "nothing yet"


def _dates(dates: Dates, perspective: str) -> list[Fact]:
    attempt = "charge" if perspective == "site" else "attempt at a round"
    facts = (
        ("study agreed to on", dates.agreed),
        ("extended plan agreed to on", dates.agreed_version),
        (f"first {attempt} on", dates.first_attempt),
        (f"newest {attempt} on", dates.last_attempt),
        ("report made on", dates.made),
    )
    return [(name, day) for name, day in facts if day is not None]


def _heads(site: SiteFacts) -> list[Fact]:
    facts = [] if site.ledger_head is None else [(f"ledger head of {site.site}", site.ledger_head)]
    if site.countersigned is not None:
        newest = f", the newest {site.countersigned_head}" if site.countersigned_head else ""
        facts.append((f"heads of {site.site} countersigned by the server", f"{site.countersigned}{newest}"))
    return facts
