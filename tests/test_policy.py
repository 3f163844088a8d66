from __future__ import annotations

from pathlib import Path

import pytest

from fedseg.errors import PolicyError
from fedseg.plan import Manifest, parse_plan
from fedseg.policy import accept, default_policy, parse_policy, refusals
from tests.runtime import toy

SAMPLE = Path(__file__).parents[1] / "sample_configs" / "policy.yaml"
TWO = 'quorum: 2, accept_two_contributors: "the hospitals already share these scans"'


def private(epsilon: float = 8.0, delta: float = 1e-5) -> Manifest:
    text = toy.PLAN.replace("{mode: off}", f"{{mode: local, epsilon: {epsilon}, delta: {delta}}}")
    for word, value in {"MODE": "secure", "ROUNDS": "1", "ABSENT": "5", "SITES": "a: {}, b: {}, c: {}"}.items():
        text = text.replace(word, value)
    return toy.manifest(parse_plan(text, "p")).model_copy(update={"noise_multiplier": 1.0})


def test_the_default_accepts_three_sites_with_secure_aggregation() -> None:
    assert refusals(default_policy(), toy.manifest(toy.plan())) == []
    accept(default_policy(), private(epsilon=100))


def test_the_sample_policy_is_one() -> None:
    assert parse_policy(SAMPLE.read_text(), SAMPLE.name).content


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
    assert few.startswith("the study has 2 sites, at least 3 are asked for (p:1, min_sites)")


@pytest.mark.parametrize(
    ("text", "manifest", "says"),
    [
        (
            "require_privacy: true",
            toy.manifest(toy.plan()),
            "the study trains without privacy (policy.yaml:2, require_privacy)",
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
        ("max_epsilon: 1", toy.manifest(toy.plan())),
        ("allow_two_contributors: true", toy.manifest(toy.plan(more=TWO))),
        ("require_secure_aggregation: false", toy.manifest(toy.plan(mode="plain"))),
        ("require_privacy: true", private()),
        ("min_sites: 3", private()),
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
