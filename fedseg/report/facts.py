"""The facts of a privacy report, typed: what the terminal shows, the JSON holds and the page prints.

A report is handed on, so nothing in `PrivacyReport` depends on who a site's subjects are: each epsilon is that of the
recorded charges, as if one subject had stood in the frame of each of them once. The true number of subjects, what some
have spent under several ids and what other studies cost are `own_figures.OwnFigures`, for the site's own screen: they
could tell whether a single subject is in two studies. `docs/privacy.md` says what each key of the JSON means, and which
field of NIST SP 800-226 and of the OpenDP deployments registry it answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedseg.federation.outgoing import Outgoing
from fedseg.federation.staying import Staying
from fedseg.report.audit_facts import Audit
from fedseg.report.privacy_course import Aggregation, Dates, Policy, Pretraining, Versions

SCHEMA_VERSION = 2

State = Literal["closed", "handed over", "charged only", "open", "unmasking", "abandoned", "void"]
"""Of an attempt. `handed over` and `charged only` are how a site's ledger knows it: with and without its commit."""


@dataclass(frozen=True)
class SiteFacts:
    """One site.

    Attributes:
        site: Its name in the plan.
        unit: Whom the figure protects: the subject.
        epsilon: Of a subject that stood once in the frame of every charge of this study, so of any subject that the
            site has under one id at most; None where it is not known, or privacy is off.
        delta: What epsilon is measured at.
        budget_epsilon: The plan's budget.
        rounds: Charges, which are attempts at rounds.
        steps: Private steps in them.
        noise_multiplier: sigma of the plan.
        max_grad_norm: C.
        sampling_rate: q.
        public_subjects: N0, the plan's public constant; never the true number.
        expected_failures: N0 times delta: so many of N0 subjects, on average and at most, may be without protection. A
            site with more subjects than N0 has more.
        accountant: Where epsilon comes from, `PLD` or `RDP`.
        cross_check: Epsilon of the same charges by Renyi DP.
        ledger_intact: Whether the ledger was read and verified; None in a study's report, which cannot know.
        ledger_head: Hash of the ledger's newest charge, as in its export; None in a study's report.
        countersigned: How many of its heads the study's server has signed.
        countersigned_head: The newest of them. All are in the chain, or the ledger is not intact.
        code_versions: The versions of fedseg that trained, by the ledger, in order; none in a study's report.
    """

    site: str
    unit: str = "subject"
    epsilon: float | None = None
    delta: float | None = None
    budget_epsilon: float | None = None
    rounds: int | None = None
    steps: int | None = None
    noise_multiplier: float | None = None
    max_grad_norm: float | None = None
    sampling_rate: float | None = None
    public_subjects: int | None = None
    expected_failures: float | None = None
    accountant: str | None = None
    cross_check: float | None = None
    ledger_intact: bool | None = None
    ledger_head: str | None = None
    countersigned: int | None = None
    countersigned_head: str | None = None
    code_versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundFacts:
    """One attempt at one round.

    Attributes:
        round: Its number.
        attempt: Which attempt; None where only the model file knows of the round.
        state: How it ended, as far as this party knows.
        charged: Whether a charge stands for it; None in a study's report, which sees claims and no charges.
        contributors: Sites in the sum, where that is known.
        lost: Sites that are not, and why.
        plan_hash: The version of the plan that it was charged under.
        noise_multiplier: sigma.
        sampling_rate: q.
        steps: T.
        max_grad_norm: C.
        epsilon_after: What it and all charges before it cost a subject that stood once in the frame of each.
        exact: Whether epsilon_after was computed for this very round, or is that of a later one, which is no less.
    """

    round: int
    attempt: int | None
    state: State
    charged: bool | None = None
    contributors: tuple[str, ...] = ()
    lost: Mapping[str, str] | None = None
    plan_hash: str | None = None
    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    steps: int | None = None
    max_grad_norm: float | None = None
    epsilon_after: float | None = None
    exact: bool = True


@dataclass(frozen=True)
class AtDelta:
    """Epsilon of the same charges at another delta; of several histories the largest at that delta."""

    delta: float
    epsilon: float


@dataclass(frozen=True)
class AttackRate:
    """The largest true-positive rate of any attacker at a false-positive rate; of several histories the largest."""

    false_positive: float
    true_positive: float


@dataclass(frozen=True)
class Guarantee:
    """What is promised, to whom, and what is not in it.

    Attributes:
        name: The definition that holds.
        unit: Whom it protects.
        unit_description: What that is.
        adjacency: When two data sets are neighbours.
        not_covered: What epsilon does not bound.
        epsilon_at: The same charges at several deltas.
        epsilon_at_two_sites: Of a subject that two sites have been charged for alike, at the plan's delta.
        attacker_at_1_percent: The best true-positive rate at 1% false positives.
        attacker: The curve.
    """

    name: str
    unit: str
    unit_description: str
    adjacency: str
    not_covered: tuple[str, ...]
    epsilon_at: tuple[AtDelta, ...]
    epsilon_at_two_sites: float
    attacker_at_1_percent: float
    attacker: tuple[AttackRate, ...]


@dataclass(frozen=True)
class Mechanism:
    """How noise gets in. The last seven are None in local mode, where the noise is Gaussian.

    Attributes:
        dimension: Parameters that are sent, d.
        noised: Parameters that are clipped and noised together: with what stays at a site under fedbn, more than d.
        honest_others: h, contributors whose noise an attacker is assumed not to know: the subject's own site is one.
        colluders: c, sites that may work with the server.
        tolerated: max(c, 1), other contributors of a sum that may pool what they know, or leave out their noise.
        scale: S, units of the ring in 1 of a gradient.
        integer_sensitivity: D2 = S C.
        epsilon_one_more: What h - 1 shares still promise: where one more than `tolerated` does.
        epsilon_alone: What one site's own share of the noise still promises if masks fail.
    """

    name: str
    noise: str
    clipping: str
    sampling: str
    divisor: str
    sensitivity: str
    several_sites: str
    noise_multiplier: float
    max_grad_norm: float
    sampling_rate: float
    steps: int
    patches: int
    dimension: int
    noised: int
    honest_others: int | None = None
    colluders: int | None = None
    tolerated: int | None = None
    scale: float | None = None
    integer_sensitivity: float | None = None
    epsilon_one_more: float | None = None
    epsilon_alone: float | None = None


@dataclass(frozen=True)
class Accounting:
    """How charges become epsilon."""

    accountant: str
    accountant_description: str
    cross_check: float | None
    cross_check_description: str
    composition: str
    post_processing: str


@dataclass(frozen=True)
class PrivacyReport:
    """All that a privacy report says. `to_json` is the document of `fedseg privacy-report --json`.

    Attributes:
        study: The study's name.
        study_id: Its identifier.
        plan_hash: SHA-256 of the resolved plan.
        code_version: The version of fedseg that resolved it.
        perspective: Whose report this is.
        privacy: The plan's mode.
        statement: The claim in one sentence.
        notes: What has to be said beside it.
        epsilon: The largest over the sites; None where one of them is not known, or privacy is off.
        ledger_error: Why this site's ledger could not be read.
        sites: One row each.
        guarantee: What is promised; None where nothing is.
        rounds: One row an attempt.
        mechanism: How noise gets in; None where privacy is off.
        accounting: How charges become epsilon.
        aggregation: What the server sees, and whom one has to trust.
        randomness: Where random numbers come from.
        pretraining: Where round 1 started.
        strategy: How rounds move the study, and what of training stays at a site.
        validation: What scores on private subjects are used for.
        leaves_the_site: Everything that a site sends.
        stays: What training leaves at a site, how long, and what is in it.
        policy: The site's own limits; None in a study's report.
        versions: Of the plan, and its reserve.
        tuning: How trial runs are charged.
        audit: What an audit of the engine found.
        not_promised: What nobody may read into this.
        residual_risk: For a data protection impact assessment.
        model_hash: Of the final model's weights.
        model_file_hash: SHA-256 of the model file itself, as `sha256sum` prints it; None while there is none here.
        dates: When it was agreed to, charged and reported.
        software: What made this report, and its version.
    """

    study: str
    study_id: str
    plan_hash: str
    code_version: str
    perspective: Literal["site", "study"]
    privacy: str
    statement: str
    notes: tuple[str, ...]
    epsilon: float | None
    ledger_error: str | None
    sites: tuple[SiteFacts, ...]
    guarantee: Guarantee | None
    rounds: tuple[RoundFacts, ...]
    mechanism: Mechanism | None
    accounting: Accounting | None
    aggregation: Aggregation
    randomness: tuple[str, ...]
    pretraining: Pretraining
    strategy: str
    validation: str
    leaves_the_site: tuple[Outgoing, ...]
    stays: tuple[Staying, ...]
    policy: Policy | None
    versions: Versions
    tuning: str
    audit: Audit
    not_promised: tuple[str, ...]
    residual_risk: tuple[str, ...]
    model_hash: str | None
    model_file_hash: str | None
    dates: Dates
    software: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """One JSON document: every field by its name, and the version of this list of fields."""
        return {"schema_version": SCHEMA_VERSION, **_plain(asdict(self))}


def _plain(value: Any) -> Any:
    """Tuples as lists; an epsilon that nothing bounds as None, as JSON has no infinity."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
