"""Documents for the tests of pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedseg.federation.outgoing import Outgoing
from fedseg.federation.staying import Staying
from fedseg.metrics.scores import SubjectScores
from fedseg.metrics.summary import to_json
from fedseg.report.audit_facts import Audit
from fedseg.report.facts import (
    Accounting,
    AtDelta,
    AttackRate,
    Guarantee,
    Mechanism,
    PrivacyReport,
    RoundFacts,
    SiteFacts,
)
from fedseg.report.own_figures import Lifetime, OwnFigures
from fedseg.report.privacy_course import Aggregation, Dates, Policy, Pretraining, VersionFacts, Versions

TISSUES = ("white_matter", "ventricles")


def scores(
    subject: str,
    *dice: float,
    site: str | None = "leuven",
    age: float | None = 24.0,
    pathology: str | None = "spina bifida",
    run: str | None = None,
    hd: float | None = 2.25,
) -> SubjectScores:
    named = dict(zip(TISSUES, dice, strict=True))
    distances = {"white_matter": 1.5, "ventricles": hd}
    volumes = {"white_matter": 81.26, "ventricles": 6.5}
    return SubjectScores(
        subject=subject,
        site=site,
        gestational_age_weeks=age,
        pathology=pathology,
        dice=named,
        hd95_mm=distances,
        volume_similarity=named,
        euler_difference=dict.fromkeys(TISSUES, 3),
        asd_mm=distances,
        nsd=named,
        volume_ml=volumes,
        reference_volume_ml=volumes,
        run=run,
    )


def document(*rows: SubjectScores) -> dict[str, Any]:
    model = {"study": "atlas", "rounds": 30, "privacy": {"mode": "off", "epsilon": None}, "plan_hash": "a" * 64}
    return to_json(model, rows)


SITE = SiteFacts(
    site="leuven",
    epsilon=3.0004001,
    delta=1e-5,
    budget_epsilon=8.0,
    rounds=2,
    steps=20,
    noise_multiplier=1.5,
    max_grad_norm=1.0,
    sampling_rate=0.25,
    public_subjects=40,
    expected_failures=4e-4,
    accountant="PLD",
    cross_check=3.25,
    ledger_intact=True,
    ledger_head="ab" * 32,
    countersigned=1,
    countersigned_head="cd" * 32,
    code_versions=("1.2.3",),
)
OWN = OwnFigures(
    subjects=17,
    epsilon=3.0004001,
    attacker_at_1_percent=0.1235,
    lifetime=(Lifetime(1e-6, "policy", 4.5, 20.0),),
    other_studies=1,
)
RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GUARANTEE = Guarantee(
    name="(epsilon, delta)-differential privacy",
    unit="subject",
    unit_description="one pregnancy",
    adjacency="add or remove one subject",
    not_covered=("that it takes part",),
    epsilon_at=(AtDelta(1e-4, 2.5), AtDelta(1e-5, 3.0004001)),
    epsilon_at_two_sites=4.75,
    attacker_at_1_percent=0.1234,
    attacker=tuple(AttackRate(rate, min(1.0, 12.34 * rate)) for rate in RATES),
)
ROUNDS = (
    RoundFacts(1, 1, "closed", True, ("leuven", "wien"), {"graz": "no answer"}, "ef" * 32, 1.5, 0.25, 10, 1.0, 1.9001),
    RoundFacts(2, 2, "charged only", True, (), {}, "ef" * 32, 1.5, 0.25, 10, 1.0, 3.0004001, exact=False),
)
MECHANISM = Mechanism(
    name="DP-SGD",
    noise="Gaussian",
    clipping="one subject at a time",
    sampling="Poisson",
    divisor="q N0",
    sensitivity="C",
    several_sites="adds up",
    noise_multiplier=1.5,
    max_grad_norm=1.0,
    sampling_rate=0.25,
    steps=10,
    patches=4,
    dimension=302525,
    noised=302600,
)
AGGREGATION = Aggregation(
    mode="secure",
    quorum=3,
    collusion=0,
    threshold=2,
    statement="Secure.",
    two_contributors=None,
    accepted_because=None,
    trust_with_masks="nobody",
    trust_without_masks="nobody either",
)
REPORT = PrivacyReport(
    study="atlas",
    study_id="12" * 16,
    plan_hash="34" * 32,
    code_version="1.2.3",
    perspective="site",
    privacy="local",
    statement="Epsilon bounds it.",
    notes=("It composes.",),
    epsilon=3.0004001,
    ledger_error=None,
    sites=(SITE,),
    guarantee=GUARANTEE,
    rounds=ROUNDS,
    mechanism=MECHANISM,
    accounting=Accounting("PLD", "loss distributions", 3.25, "Renyi", "20 steps", "all that follows"),
    aggregation=AGGREGATION,
    randomness=("From the system.",),
    pretraining=Pretraining("56" * 32, "made-up brains", "public", "The coordinator's word."),
    strategy="fedavg: the mean moves the model",
    validation="No score leaves.",
    leaves_the_site=(
        Outgoing("Upload.chunk", "the update", "accounted", "clipped and noised"),
        Outgoing("Upload.session", "the session", "nothing personal", "it repeats what it was told"),
    ),
    stays=(Staying("cache/", "the scans", "removed at the end"),),
    policy=Policy(True, {"require_privacy": True, "max_epsilon": 14.0, "lifetime_epsilon": None}),
    versions=Versions(
        "78" * 32,
        1,
        1.5,
        10,
        2,
        7.5,
        (VersionFacts("78" * 32, 4.0, 8, 1, "2026-01-02"), VersionFacts("34" * 32, 8.0, 10, 2, "2026-02-03")),
    ),
    tuning="It is charged.",
    audit=Audit("No audit was given.", given=False),
    not_promised=("That nothing can be learned.",),
    residual_risk=("Membership.",),
    model_hash="9a" * 32,
    model_file_hash="bc" * 32,
    dates=Dates("2026-01-02", "2026-02-03", "2026-01-04", "2026-03-05", "2026-04-06"),
    software={"fedseg": "1.2.4", "python": "3.11.7"},
)


def privacy(**changes: Any) -> PrivacyReport:
    return replace(REPORT, **changes)
