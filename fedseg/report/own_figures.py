"""What a site's own screen shows beside its privacy report, and no document does: it depends on single subjects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedseg.report.facts import PrivacyReport
from fedseg.report.numbers import number, percent, printed
from fedseg.report.privacy_parts import Section, Table

MORE = (
    "That is more than the report says: a subject stands in this study's frames under several ids. Give all ids of one "
    "pregnancy one subject_key."
)


@dataclass(frozen=True)
class Lifetime:
    """What all studies on one ledger cost a subject at most.

    Attributes:
        delta: What epsilon is measured at.
        source: Whose delta that is.
        epsilon: The largest of any subject, all studies composed.
        budget: What the hospital's policy allows at this delta; None where it sets no limit.
    """

    delta: float
    source: Literal["plan", "policy"]
    epsilon: float
    budget: float | None


@dataclass(frozen=True)
class OwnFigures:
    """What a site's own screen shows beside its report, and no document does: it depends on single subjects.

    Attributes:
        subjects: How many the newest charge of the study names; 0 before the first.
        epsilon: The largest of any subject in this study, all of its ids joined; at the plan's delta.
        attacker_at_1_percent: The best true-positive rate at 1% false positives against any subject.
        lifetime: Over all studies of the ledger.
        other_studies: Studies of the ledger beside this one, tuning included.
    """

    subjects: int
    epsilon: float
    attacker_at_1_percent: float
    lifetime: tuple[Lifetime, ...]
    other_studies: int


def own_section(own: OwnFigures, report: PrivacyReport) -> Section:
    """What the site's own screen shows beside its report: facts that could tell of single subjects."""
    words = (
        f"For this site's eyes only: the newest charge names {own.subjects} subjects (pregnancies, not ids). JSON and "
        "page leave this section out, as it could tell that one subject is in two studies, or stands here under two "
        "ids.",
        f"The largest epsilon of any subject in this study, all of its ids joined: {printed(own.epsilon)}. An attacker "
        f"who is wrong about 1% of the absent is right about any one of them at most "
        f"{percent(own.attacker_at_1_percent)} of the time.",
        f"All studies on this hospital's ledger, composed for each subject: this one, and {own.other_studies} besides.",
    )
    more = report.epsilon is not None and own.epsilon > report.epsilon
    rows = tuple(
        (f"{each.delta:g}", f"the {each.source}'s", printed(each.epsilon), _limit(each.budget)) for each in own.lifetime
    )
    table = Table(("delta", "whose", "epsilon of all studies", "lifetime_epsilon"), rows, frozenset({1}))
    return Section("At this site alone", (*words, *((MORE,) if more else ())), table=table, warning=more)


def _limit(allowed: float | None) -> str:
    return "not set" if allowed is None else number(allowed)
