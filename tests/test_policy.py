from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedseg import policy as site_policy
from fedseg.document import Document
from fedseg.errors import PolicyError
from fedseg.plan.manifest import Init, Manifest
from fedseg.plan.study import parse_plan
from fedseg.policy import SitePolicy, default_policy, parse_policy, policy_changes
from fedseg.runtime.session import thresholds_of
from fedseg.secagg.thresholds import Thresholds
from tests.runtime import toy
from tests.runtime.measured import evaluated

SAMPLE = Path(__file__).parents[1] / "sample_configs" / "policy.yaml"
TWO = 'quorum: 2, accept_two_contributors: "the hospitals already share these scans"'


FIVE = ("a", "b", "c", "d", "e")


def collusions(manifest: Manifest) -> tuple[int, int]:
    secure = thresholds_of(manifest.plan, manifest.quorum)
    return secure.c, Thresholds.of(secure.n).c if secure.secure else 0


def refusals(policy: Document[SitePolicy], manifest: Manifest) -> list[str]:
    return site_policy.refusals(policy, manifest, *collusions(manifest))


def accept(policy: Document[SitePolicy], manifest: Manifest) -> None:
    site_policy.accept(policy, manifest, *collusions(manifest))


def private(epsilon: float = 8.0, delta: float = 1e-5) -> Manifest:
    text = toy.PLAN.replace("{mode: off}", f"{{mode: local, epsilon: {epsilon}, delta: {delta}}}")
    for word, value in {"MODE": "secure", "ROUNDS": "1", "ABSENT": "5", "SITES": "a: {}, b: {}, c: {}"}.items():
        text = text.replace(word, value)
    return toy.manifest(parse_plan(text, "p")).model_copy(update={"noise_multiplier": 1.0})


def distributed() -> Manifest:
    study = private()
    privacy = study.plan.privacy.model_copy(update={"mode": "distributed"})
    training = study.plan.training.model_copy(update={"steps": 1, "optimiser": "sgd"})
    return study.model_copy(update={"plan": study.plan.model_copy(update={"privacy": privacy, "training": training})})


def test_the_default_accepts_three_sites_with_secure_aggregation() -> None:
    assert refusals(default_policy(), toy.manifest(toy.plan())) == []
    accept(default_policy(), private(epsilon=100))


def test_the_sample_policy_is_one() -> None:
    assert parse_policy(SAMPLE.read_text(), SAMPLE.name).content


def test_the_sample_policy_speaks_of_every_key_and_accepts_the_private_sample_plan() -> None:
    text = SAMPLE.read_text()
    assert [key for key in SitePolicy.model_fields if f"{key}: " not in text] == []
    plan = parse_plan((SAMPLE.parent / "atlas-private.yaml").read_text(), "p")
    accept(parse_policy(text, "p"), toy.manifest(plan).model_copy(update={"noise_multiplier": 1.0}))


def test_a_private_study_from_a_model_of_unprotected_patients_takes_the_policys_word() -> None:
    start = Init(model_hash="0" * 64, trained_on="study 'x', WITHOUT differential privacy", protection="none")
    study = private().model_copy(update={"init": start})
    said = "its first model was trained on patients without differential privacy, and all its models tell of them"
    assert refusals(default_policy(), study) == [f"{said} (allow_unprotected_start of the default policy)"]
    written = parse_policy("max_epsilon: 9\nallow_unprotected_start: false\n", "p.yaml")
    assert refusals(written, study) == [f"{said} (p.yaml:2, allow_unprotected_start)"]
    assert refusals(parse_policy("allow_unprotected_start: true", "p.yaml"), study) == []
    for harmless in ("public", "privacy"):
        other = start.model_copy(update={"protection": harmless})
        assert refusals(default_policy(), study.model_copy(update={"init": other})) == []
    assert refusals(default_policy(), toy.manifest(toy.plan()).model_copy(update={"init": start})) == []
    assert Init(model_hash="0" * 64, trained_on="a file that says nothing").protection == "none"


def test_what_the_default_refuses() -> None:
    plain = refusals(default_policy(), toy.manifest(toy.plan(mode="plain")))
    assert plain == [
        "the server would see this site's own updates (aggregation.mode: plain) "
        "(require_secure_aggregation of the default policy)"
    ]
    two = refusals(default_policy(), toy.manifest(toy.plan(more=TWO)))
    assert two == [
        "a round may end with 2 contributors, who could each read the other's update "
        "(allow_two_contributors of the default policy)"
    ]
    (few,) = refusals(
        parse_policy("require_secure_aggregation: false\n", "p"), toy.manifest(toy.plan(("a", "b"), mode="plain"))
    )
    assert few.startswith(
        "the study has 2 sites, at least 3 are asked for (min_sites of p, which leaves it at its default)"
    )


def test_robust_rules_need_two_words_of_the_policy() -> None:
    study = toy.manifest(toy.plan(FIVE, mode="plain", more="rule: multi_krum, liars: 1"))
    compares = (
        "the server would compare this site's own updates with the others' (aggregation.rule: multi_krum) "
        "(allow_robust_rules of the default policy)"
    )
    sees, *rest = refusals(default_policy(), study)
    assert "(require_secure_aggregation of the default policy)" in sees
    assert rest == [compares]
    (only,) = refusals(parse_policy("require_secure_aggregation: false\n", "p"), study)
    assert only == compares.replace(
        "(allow_robust_rules of the default policy)", "(allow_robust_rules of p, which leaves it at its default)"
    )
    accept(parse_policy("require_secure_aggregation: false\nallow_robust_rules: true\n", "p"), study)


def test_less_protection_against_collusion_than_usual_takes_the_policys_word() -> None:
    for collusion, asked, safe in ((0, "", False), (0, "min_collusion: 0\n", True), (1, "", True), (3, "", True)):
        study = toy.manifest(toy.plan(FIVE, more=f"collusion: {collusion}"))
        policy = parse_policy(f"min_sites: 5\n{asked}", "policy.yaml")
        expected = (
            "updates stay hidden from a server with 0 sites on its side, at least 1 are asked for "
            "(min_collusion of policy.yaml, which leaves it at its default)"
        )
        assert refusals(policy, study) == ([] if safe else [expected])


def test_collusion_means_nothing_where_the_server_sees_every_update() -> None:
    accept(
        parse_policy("require_secure_aggregation: false\nmin_collusion: 3\n", "p"),
        toy.manifest(toy.plan(FIVE, mode="plain")),
    )


@pytest.mark.parametrize(
    ("text", "manifest", "says"),
    [
        (
            "require_privacy: true",
            toy.manifest(toy.plan()),
            "the study trains without privacy (policy.yaml:2, require_privacy)",
        ),
        (
            "max_epsilon: 1",
            toy.manifest(toy.plan()),
            "the study trains without privacy, where no max_epsilon holds; write require_privacy: false to accept that "
            "(require_privacy of policy.yaml, which leaves it at its default)",
        ),
        (
            "lifetime_epsilon: 4",
            toy.manifest(toy.plan()),
            "the study trains without privacy, where no lifetime_epsilon holds; write require_privacy: false to accept "
            "that (require_privacy of policy.yaml, which leaves it at its default)",
        ),
        (
            "max_epsilon: 4",
            private(8),
            "the study's budget is epsilon 8.0, at most 4.0 is accepted (policy.yaml:2, max_epsilon)",
        ),
        (
            "max_delta: 1e-6",
            private(8),
            "the study's delta is 1e-05, at most 1e-06 is accepted (policy.yaml:2, max_delta)",
        ),
        ("min_sites: 5", private(8), "the study has 3 sites, at least 5 are asked for (policy.yaml:2, min_sites)"),
        ("tasks: [brain_mask]", private(8), "the task feta is not accepted (policy.yaml:2, tasks)"),
        (
            "min_contributors: 5",
            toy.manifest(toy.plan(FIVE)),
            "a round may end with 4 contributors, at least 5 are asked for (policy.yaml:2, min_contributors)",
        ),
        (
            "min_collusion: 2",
            toy.manifest(toy.plan(FIVE)),
            "updates stay hidden from a server with 1 sites on its side, at least 2 are asked for "
            "(policy.yaml:2, min_collusion)",
        ),
        (
            "allow_distributed_noise: false",
            distributed(),
            "this site's noise alone would not protect its subjects (privacy.mode: distributed) "
            "(policy.yaml:2, allow_distributed_noise)",
        ),
        (
            "allow_validation_scores: false",
            toy.manifest(toy.plan(more="rollback: {drop: 0.1}")),
            "this site's validation Dice would leave it in the sum of each round (aggregation.rollback) "
            "(policy.yaml:2, allow_validation_scores)",
        ),
        (
            "allow_evaluation: false",
            evaluated(toy.manifest(toy.plan())),
            "scores on this site's kept-back subjects would leave it in a sum (evaluation.federated) "
            "(policy.yaml:2, allow_evaluation)",
        ),
    ],
)
def test_each_limit_names_its_line(text: str, manifest: Manifest, says: str) -> None:
    policy = parse_policy(f"# ours\n{text}\n", "policy.yaml")
    assert refusals(policy, manifest) == [says]
    with pytest.raises(PolicyError) as caught:
        accept(policy, manifest)
    assert caught.value.what == f"this hospital's policy refuses the study: {says}"
    assert "talk to the coordinator" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "manifest"),
    [
        ("max_epsilon: 8", private(8)),
        ("max_delta: 1e-5", private(8)),
        ("max_epsilon: 1\nrequire_privacy: false", toy.manifest(toy.plan())),
        ("allow_two_contributors: true", toy.manifest(toy.plan(more=TWO))),
        ("require_secure_aggregation: false", toy.manifest(toy.plan(mode="plain"))),
        ("require_privacy: true", private()),
        ("min_sites: 3", private()),
        ("min_contributors: 4", toy.manifest(toy.plan(FIVE))),
        ("min_contributors: 3", private()),
        ("min_collusion: 1", toy.manifest(toy.plan(FIVE))),
        ("min_collusion: 2", toy.manifest(toy.plan(FIVE, more="collusion: 2"))),
        ("min_sites: 3", toy.manifest(toy.plan(more="rollback: {drop: 0.1}"))),
        ("allow_validation_scores: false", toy.manifest(toy.plan())),
        ("allow_evaluation: false", toy.manifest(toy.plan())),
        ("min_sites: 3", evaluated(toy.manifest(toy.plan()))),
        ("allow_distributed_noise: false", private()),
        ("allow_reused_models: true", toy.manifest(toy.plan())),
    ],
)
def test_what_is_just_within_a_limit_is_accepted(text: str, manifest: Manifest) -> None:
    accept(parse_policy(text, "p"), manifest)


def test_every_refusal_is_named_at_once() -> None:
    policy = parse_policy("require_privacy: true\nmin_sites: 5\n", "p")
    with pytest.raises(PolicyError, match=r"without privacy .*; the study has 3 sites"):
        accept(policy, toy.manifest(toy.plan()))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "max_epsilom: 4\n",
            "policy.yaml:1: unknown key max_epsilom (did you mean max_epsilon? known here: require_privacy",
        ),
        ("require_privacy: NO\n", "policy.yaml:1: require_privacy: input should be a valid boolean, not 'NO'"),
        ("min_sites: 3\nmax_epsilon: lots\n", "policy.yaml:2: max_epsilon: input should be a valid number, not 'lots'"),
        ("max_epsilon: 0\n", "max_epsilon: input should be greater than 0, not 0"),
        ("max_delta: 0.01\n", "max_delta: input should be less than or equal to 0.001, not 0.01"),
        (
            "tasks: [fetta]\n",
            "policy.yaml:1: tasks.0: input should be 'feta' or 'brain_mask', not 'fetta' (did you mean feta?)",
        ),
        ("", "policy.yaml: empty, or not a mapping"),
    ],
)
def test_mistakes_in_a_policy(text: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.yaml")
    assert says in str(caught.value)


STRICTER: dict[str, list[Any]] = {
    "require_privacy": [False, None, True],
    "max_epsilon": [None, 8.0, 4.0],
    "max_delta": [1e-3, 1e-5],
    "allow_unprotected_start": [True, False],
    "allow_distributed_noise": [True, False],
    "lifetime_epsilon": [None, 20.0, 10.0],
    "lifetime_delta": [1e-5, 1e-6],
    "require_secure_aggregation": [False, True],
    "allow_robust_rules": [True, False],
    "allow_two_contributors": [True, False],
    "allow_reused_models": [True, False],
    "allow_validation_scores": [True, False],
    "allow_evaluation": [True, False],
    "min_sites": [3, 4],
    "min_contributors": [1, 3],
    "min_collusion": [0, 1],
    "tasks": [("feta", "brain_mask"), ("feta",)],
}


def test_every_line_of_a_policy_knows_which_way_is_stricter() -> None:
    assert list(STRICTER) == list(SitePolicy.model_fields)
    for key, values in STRICTER.items():
        for lax, strict in pairwise(values):
            before, after = SitePolicy(**{key: lax}), SitePolicy(**{key: strict})
            (there,), (back,) = policy_changes(before, after), policy_changes(after, before)
            assert (there.key, there.before, there.after, there.laxer) == (key, lax, strict, False)
            assert (back.before, back.after, back.laxer) == (strict, lax, True), key


def test_what_cannot_be_compared_counts_as_laxer() -> None:
    pairs: list[tuple[str, Any, Any]] = [
        ("min_collusion", None, 1),
        ("min_collusion", 1, None),
        ("tasks", ("feta",), ("brain_mask",)),
    ]
    for key, before, after in pairs:
        old, new = SitePolicy(**{key: before}), SitePolicy(**{key: after})
        assert [change.laxer for change in policy_changes(old, new)] == [True]
    assert policy_changes(SitePolicy(), SitePolicy()) == []
