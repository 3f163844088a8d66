"""What a privacy report says of a study's course: whom one trusts, where it began, what was agreed to when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Aggregation:
    """What the server sees, and whom one trusts where masks hold and where they don't."""

    mode: str
    quorum: int
    collusion: int | None
    threshold: int | None
    statement: str
    two_contributors: str | None
    accepted_because: str | None
    trust_with_masks: str | None
    trust_without_masks: str | None


@dataclass(frozen=True)
class Pretraining:
    """Where round 1 started.

    Attributes:
        model_hash: Of that model's weights.
        trained_on: What it was trained on.
        protection: What protects whom it was trained on, as `plan.manifest.Init` says it; None: it is the plan's seed.
        source: Whose word that is; None for the seed, which every site computes.
    """

    model_hash: str
    trained_on: str
    protection: Literal["public", "privacy", "none"] | None = None
    source: str | None = None


@dataclass(frozen=True)
class VersionFacts:
    """One version of the plan: what was promised when.

    Attributes:
        plan_hash: Of the version.
        budget_epsilon: Its budget for all rounds, those of earlier versions included; None where privacy is off.
        rounds: Its rounds, those of earlier versions included.
        reserve_rounds: Beyond them.
        agreed: The day (UTC) on which this site agreed to it; None where it was not asked, or in a study's report.
    """

    plan_hash: str
    budget_epsilon: float | None
    rounds: int
    reserve_rounds: int
    agreed: str | None = None


@dataclass(frozen=True)
class Versions:
    """Earlier versions of the plan, and rounds that were kept in reserve.

    Attributes:
        parent: Hash of the version that this one extends.
        last_round: The newest round that was begun under it.
        epsilon_before: What all versions before may have cost a subject, as the plan says it.
        rounds: Rounds of the plan.
        reserve_rounds: Rounds beyond them that the noise is calibrated for.
        epsilon_allowed: What all rounds of the plan, reserve and earlier versions included, would cost.
        agreed: Every version that is known here, oldest first; the last one is in force.
    """

    parent: str | None
    last_round: int | None
    epsilon_before: float | None
    rounds: int
    reserve_rounds: int
    epsilon_allowed: float | None
    agreed: tuple[VersionFacts, ...] = ()


@dataclass(frozen=True)
class Policy:
    """What the hospital's policy says of its patients' privacy; nothing of it depends on a subject.

    Attributes:
        written: Whether the hospital wrote one; else the defaults hold.
        limits: Its keys and their values.
    """

    written: bool
    limits: Mapping[str, float | bool | None]


@dataclass(frozen=True)
class Dates:
    """When, as days in UTC (YYYY-MM-DD): finer times would tell how long training took, and so how many took part.

    Attributes:
        agreed: The site agreed to the study; None in a study's report, or where it was not written down.
        agreed_version: It agreed to the version of the plan in force, where that is an extension.
        first_attempt: The first attempt at a round; at a site its charge, so None where none is made.
        last_attempt: The newest one.
        made: This report was made; None where nobody said.
    """

    agreed: str | None = None
    agreed_version: str | None = None
    first_attempt: str | None = None
    last_attempt: str | None = None
    made: str | None = None
