from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import PlanError
from fedseg.plan.combinations import most_liars
from fedseg.plan.manifest import Init, Manifest, Parent
from fedseg.plan.sections import Rule
from fedseg.plan.study import StudyPlan, parse_plan
from fedseg.runtime.session import check_aggregation
from tests.runtime import toy

SAMPLES = sorted((Path(__file__).parents[1] / "sample_configs").glob("*.yaml"))
PLAN = """\
name: three hospitals
privacy: {mode: off}
schedule:
  rounds: 2
aggregation:
  mode: secure
sites:
  a: {}
  b: {}
  c: {}
"""


def refusal(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "plan.yaml")
    return str(caught.value)


def quorum_refusal(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        check_aggregation(parse_plan(text, "plan.yaml"))
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert PLAN.count(old) == 1
    return PLAN.replace(old, new)


def test_what_is_left_out_has_a_default() -> None:
    plan = parse_plan(PLAN, "plan.yaml").content
    assert (plan.task, plan.network.preset, plan.image.patch) == ("feta", "lean", (96, 96, 96))
    assert (plan.aggregation.quorum, plan.aggregation.ring, plan.private) == (None, 32, False)
    assert plan.site_names == ("a", "b", "c")


@pytest.mark.parametrize("path", [path for path in SAMPLES if path.name != "policy.yaml"], ids=lambda path: path.name)
def test_every_sample_plan_is_possible(path: Path) -> None:
    document = parse_plan(path.read_text(), path.name)
    assert 2 <= check_aggregation(document) <= len(document.content.sites)


def test_off_is_a_word_and_1e_minus_4_a_number() -> None:
    plan = parse_plan(PLAN + "training: {learning_rate: 1e-4}\n", "plan.yaml").content
    assert plan.privacy.mode == "off"
    assert plan.training.learning_rate == 1e-4


def test_no_is_a_site_like_any_other() -> None:
    assert parse_plan(changed("  c: {}", "  no: {}"), "p").content.site_names == ("a", "b", "no")
    assert "a site's name is 1 to 32 of a-z, 0-9 and '-', not 'NO'" in refusal(changed("  c: {}", "  NO: {}"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "rounds: 2",
            "round: 2",
            "plan.yaml:4: unknown key schedule.round (did you mean rounds? known here: rounds, deadline_s",
        ),
        ("name:", "zz:", "plan.yaml:1: unknown key zz (known here: name, task, seed"),
        (
            "  b: {}",
            "  b: {wieght: 2}",
            "plan.yaml:9: unknown key sites.b.wieght (did you mean weight? known here: weight, pub",
        ),
        ("rounds: 2", "rounds: two", "plan.yaml:4: schedule.rounds: input should be a valid integer, not 'two'"),
        ("rounds: 2", "rounds: 0", "schedule.rounds: input should be greater than or equal to 1, not 0"),
        (
            "mode: secure",
            "mode: secrue",
            "aggregation.mode: input should be 'secure' or 'plain', not 'secrue' (did you mean secure?)",
        ),
        ("mode: secure", "ring: 16", "plan.yaml:6: aggregation.ring: input should be 32, not 16"),
        ("{mode: off}", "{mode: local}", "plan.yaml:2: privacy: mode local needs a budget: set epsilon"),
        ("{mode: off}", "{mode: off, epsilon: 8}", "plan.yaml:2: privacy: epsilon is set but mode is off"),
        ("{mode: off}", "{mode: distributed}", "plan.yaml:2: privacy: mode distributed needs a budget: set epsilon"),
        (
            "{mode: off}",
            "{mode: distributed, epsilon: 8}\ntraining: {optimiser: sgd}",
            "plan.yaml:3: training.steps: privacy.mode is distributed: each round is one pooled step (set training.st",
        ),
        (
            "{mode: off}",
            "{mode: distributed, epsilon: 8}\ntraining:\n  steps: 1\n  optimiser: adam",
            "plan.yaml:5: training.optimiser: privacy.mode is distributed: the pooled gradient moves the model by SGD",
        ),
        (
            "{mode: off}",
            "{mode: distributed, epsilon: 8}\ntraining: {steps: 1, optimiser: sgd, weight_decay: 0.1}",
            "training.weight_decay: privacy.mode is distributed: the pooled step takes none (remove the line)",
        ),
        (
            "name:",
            "training: {layers: encoder}\nname:",
            "training.layers: input should be 'all', 'decoder', 'head' or 'norms', not 'encoder'",
        ),
        ("name:", "training: {average: 1}\nname:", "training.average: input should be less than 1, not 1"),
        (
            "{mode: off}",
            "{mode: local, epsilon: 8, delta: 0.1}",
            "privacy.delta: input should be less than or equal to 0.001, not 0.1",
        ),
        (
            "{mode: off}",
            "{mode: local, epsilon: 8, sampling_rate: 1.5}",
            "privacy.sampling_rate: input should be less than or equal to 1",
        ),
        (
            "mode: secure",
            "quorum: 4",
            "plan.yaml:6: aggregation.quorum: 4 of 3 sites can never be reached (at most 3, or leave the line out)",
        ),
        (
            "mode: secure",
            "accept_two_contributors: ok",
            "accept_two_contributors: string should have at least 20 characters, not 'ok'",
        ),
        ("  a: {}\n  b: {}\n  c: {}\n", "  {}\n", "plan.yaml:7: sites: dictionary should have at least 1 item"),
        (
            "name:",
            "image:\n  patch: [96, 96, 90]\nname:",
            "plan.yaml:2: image.patch: each side must be a multiple of 16 for the lean network, not [96, 96, 90] "
            "([96, 96, 96] is near)",
        ),
        (
            "name:",
            "network: {preset: small}\nimage: {patch: [12, 8, 8]}\nname:",
            "multiple of 8 for the small network, not [12, 8, 8] ([16, 8, 8] is near)",
        ),
        ("name:", "image: {patch: [96, 96]}\nname:", "plan.yaml:1: image.patch"),
        (
            "name:",
            "training: {patches_per_subject: 0}\nname:",
            "training.patches_per_subject: input should be greater than or equal to 1",
        ),
        ("privacy: {mode: off}\n", "", "plan.yaml:1: privacy is missing"),
        ("rounds: 2", "rounds: 10000000", "schedule.rounds: input should be less than or equal to 10000, not 10000000"),
        (
            "name:",
            "training:\n  steps: 10000\nimage: {patch: [264, 8, 8]}\nname:",
            "plan.yaml:3: image.patch.0: input should be less than or equal to 256, not 264",
        ),
        (
            "rounds: 2",
            "rounds: 50\ntraining:\n  steps: 10000",
            "plan.yaml:6: training.steps: more than 200000 steps in all rounds together, those in reserve too (fewer "
            "steps a round, or fewer rounds)",
        ),
        (
            "name:",
            "training: {subjects_per_step: 64}\nimage:\n  patch: [256, 256, 256]\nname:",
            "plan.yaml:3: image.patch: patches_per_subject and subjects_per_step make too large a batch of it (at most "
            "268435456 voxels in all; a step takes 128 such patches)",
        ),
        (
            "name:",
            "task: brain_mask\ntraining: {made_up: 0.5}\nname:",
            "plan.yaml:2: training.made_up: images are made up from tissues, which the task brain_mask has none of "
            "(remove the line)",
        ),
        ("  b: {}", "  b b: {}", "a site's name is 1 to 32 of a-z, 0-9 and '-', not 'b b'"),
    ],
)
def test_mistakes(old: str, new: str, says: str) -> None:
    assert says in refusal(changed(old, new))


def test_weights_are_one_in_a_private_study() -> None:
    text = changed("{mode: off}", "{mode: local, epsilon: 8}").replace("  b: {}", "  b: {weight: 2}")
    assert (
        "plan.yaml:9: sites.b.weight: every weight is 1 in a private study, and that of b is 2 (remove the line)"
    ) in refusal(text)


def test_a_quorum_below_the_thresholds_is_refused_with_its_line() -> None:
    five = changed("  c: {}\n", "  c: {}\n  d: {}\n  e: {}\n")
    assert check_aggregation(parse_plan(five, "p")) == 4
    for text, least in ((changed("mode: secure", "quorum: 1"), 3), (five.replace("mode: secure", "quorum: 3"), 4)):
        said = quorum_refusal(text)
        assert "plan.yaml:6: aggregation.quorum:" in said
        assert f"is below the least that secure aggregation allows here, {least}" in said
        assert f"(remove the line, or ask for {least} or more)" in said
    assert check_aggregation(parse_plan(five.replace("mode: secure", "quorum: 5"), "p")) == 5


def test_a_quorum_of_two_needs_a_sentence() -> None:
    two = changed("mode: secure", "quorum: 2")
    said = quorum_refusal(two)
    assert "plan.yaml:6: aggregation.quorum: 2 is below the least" in said
    assert "also needs aggregation.accept_two_contributors, a sentence that says why" in said
    sentence = '  accept_two_contributors: "the hospitals already share these scans"\n'
    assert check_aggregation(parse_plan(two.replace("quorum: 2\n", f"quorum: 2\n{sentence}"), "p")) == 2
    assert check_aggregation(parse_plan(two.replace("quorum: 2\n", f"mode: secure\n{sentence}"), "p")) == 3


@pytest.mark.parametrize(
    ("aggregation", "sites", "says"),
    [
        ("mode: secure", "a b", "plan.yaml:7: secure aggregation needs at least 3 sites, this study has 2"),
        (
            "collusion: 2",
            "a b c",
            "plan.yaml:6: collusion 2 is impossible with 3 sites (at least two sites must be honest: 0 to 1)",
        ),
        (
            'accept_two_contributors: "the hospitals already share these scans", quorum: 2',
            "a b c d",
            "plan.yaml:6: two contributors can be accepted only with 3 sites and collusion 0, not with 4 and 1",
        ),
    ],
)
def test_impossible_rosters_are_refused_with_their_line(aggregation: str, sites: str, says: str) -> None:
    lines = "\n  ".join(aggregation.split(", "))
    roster = "".join(f"  {site}: {{}}\n" for site in sites.split())
    assert says in quorum_refusal(changed("mode: secure", lines).replace("  a: {}\n  b: {}\n  c: {}\n", roster))


def test_plain_mode_takes_any_quorum() -> None:
    assert check_aggregation(parse_plan(changed("mode: secure", "mode: plain"), "p")) == 3
    assert check_aggregation(parse_plan(changed("mode: secure", "mode: plain\n  quorum: 1"), "p")) == 1


FIVE = changed("  c: {}\n", "  c: {}\n  d: {}\n  e: {}\n")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("rule: krum", "p:7: aggregation.rule: input should be 'mean', 'median', 'trimmed_mean' or 'multi_krum'"),
        ("liars: 0", "p:7: aggregation.liars: input should be greater than or equal to 1, not 0"),
        ("liars: 1", "p:7: aggregation.liars: mean takes no number of liars; trimmed_mean and multi_krum do (remove"),
        ("liars: 1\n  rule: median", "p:7: aggregation.liars: median takes no number of liars"),
        (
            "rule: trimmed_mean",
            "p:7: aggregation.rule: trimmed_mean needs aggregation.liars, how many sites may lie (set it to 1 to 2",
        ),
        (
            "rule: multi_krum",
            "p:7: aggregation.rule: multi_krum needs aggregation.liars, how many sites may lie (set it to 1 here)",
        ),
        (
            "rule: trimmed_mean\n  liars: 3",
            "p:8: aggregation.liars: trimmed_mean over a quorum of 5 withstands at most 2",
        ),
        (
            "rule: multi_krum\n  liars: 2",
            "p:8: aggregation.liars: multi_krum over a quorum of 5 withstands at most 1, not 2 (set it to 1, or",
        ),
        (
            "quorum: 4\n  rule: multi_krum\n  liars: 1",
            "p:8: aggregation.rule: multi_krum needs a quorum of 5 or more, this plan's is 4",
        ),
        (
            "quorum: 4\n  rule: trimmed_mean\n  liars: 2",
            "p:9: aggregation.liars: trimmed_mean over a quorum of 4 withstands at most 1, not 2",
        ),
        ("quorum: 2\n  rule: median", "p:8: aggregation.rule: median needs a quorum of 3 or more, this plan's is 2"),
        ("rollback: true", "p:7: aggregation.rollback: input should be"),
        ("rollback: {}", "p:7: aggregation.rollback.drop is missing"),
        ("rollback: {drop: 0}", "p:7: aggregation.rollback.drop: input should be greater than 0, not 0"),
        ("rollback: {drop: 1}", "p:7: aggregation.rollback.drop: input should be less than 1, not 1"),
        ("rollback: {dorp: 0.1}", "p:7: unknown key aggregation.rollback.dorp (did you mean drop? known here: drop)"),
    ],
)
def test_mistakes_in_rules_and_rollback(lines: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(FIVE.replace("mode: secure", f"mode: plain\n  {lines}"), "p")
    assert says in str(caught.value)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean\n  liars: 1", "multi_krum\n  liars: 1"])
def test_a_robust_rule_needs_single_updates_of_one_weight(rule: str) -> None:
    name = rule.partition("\n")[0]
    secure = FIVE.replace("mode: secure", f"mode: secure\n  rule: {rule}")
    assert (
        f"plan.yaml:7: aggregation.rule: the server would need every site's own update for {name}, and secure "
        "aggregation keeps it from that (use mean; or mode: plain, where every site's policy allows it)"
    ) in refusal(secure)
    plain = secure.replace("mode: secure", "mode: plain")
    unequal = plain.replace("  b: {}", "  b: {weight: 2}")
    assert (
        f"plan.yaml:7: aggregation.rule: {name} counts every site alike, and the sites have several weights (give"
        in refusal(unequal)
    )
    assert parse_plan(plain, "p").content.aggregation.rule == name
    alike = plain.replace("{}", "{weight: 2}")
    assert parse_plan(alike, "p").content.aggregation.rule == name


def test_distributed_noise_leaves_no_single_update_for_a_rule() -> None:
    noisy = FIVE.replace("{mode: off}", "{mode: distributed, epsilon: 8}\ntraining: {steps: 1, optimiser: sgd}")
    assert parse_plan(noisy, "p").content.privacy.sampling_rate == 1.0
    assert "one site's share of the noise protects nobody by itself (set aggregation.mode to secure)" in refusal(
        noisy.replace("mode: secure", "mode: plain\n  rule: median")
    )
    assert "secure aggregation keeps it from that" in refusal(noisy.replace("mode: secure", "rule: median"))


def test_the_usual_sampling_rate_is_the_modes() -> None:
    for mode, rate in {"local, epsilon: 8": 0.5, "local, epsilon: 8, sampling_rate: 0.25": 0.25}.items():
        assert parse_plan(changed("mode: off", f"mode: {mode}"), "p").content.privacy.sampling_rate == rate


def test_a_private_study_does_not_roll_back() -> None:
    open_study = PLAN.replace("mode: secure", "rollback: {drop: 0.1}\n  mode: secure")
    rollback = parse_plan(open_study, "p").content.aggregation.rollback
    assert rollback is not None and rollback.drop == 0.1
    assert (
        "plan.yaml:6: aggregation.rollback: a private study has no validation scores: they would have to be noised and "
        "charged to every hospital's ledger, which is not offered (remove the line)"
    ) in refusal(open_study.replace("{mode: off}", "{mode: local, epsilon: 8}"))


def test_a_private_study_publishes_no_evaluation() -> None:
    open_study = PLAN + "evaluation: {federated: true}\n"
    assert parse_plan(open_study, "p").content.evaluation.federated
    assert not parse_plan(PLAN, "p").content.evaluation.federated
    assert (
        "evaluation.federated: a private study publishes no scores: they would have to be noised and charged to every "
        "hospital's ledger, which is not offered (remove the line, and have each site score the model on its own "
        "subjects with fedseg evaluate)"
    ) in refusal(open_study.replace("{mode: off}", "{mode: local, epsilon: 8}"))


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        ("mean", [0, 0, 0, 0, 0, 0, 0]),
        ("median", [0, 0, 1, 1, 2, 2, 3]),
        ("trimmed_mean", [0, 0, 1, 1, 2, 2, 3]),
        ("multi_krum", [-1, -1, 0, 0, 1, 1, 2]),
    ],
)
def test_how_many_liars_a_rule_withstands(rule: Rule, most: list[int]) -> None:
    assert [most_liars(rule, contributors) for contributors in range(1, 8)] == most


def manifest(**changes: object) -> Manifest:
    return toy.manifest(toy.plan()).model_copy(update=changes)


def test_the_plan_hash_is_that_of_canonical_json() -> None:
    made = manifest()
    data = made.to_json()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert made.plan_hash == hashlib.sha256(data).hexdigest()
    assert Manifest.from_json(data) == made


def test_the_plan_hash_is_frozen() -> None:
    """The same plan has the same hash in every version that reads it: a change here breaks running studies."""
    assert manifest().plan_hash == "1b563017895593d2406d683eec2c52c659f43c73f2cd6b0ca1ebd87cc1ea534c"


@given(st.permutations(["a: {}", "b: {weight: 2}", "c: {}"]), st.booleans())
def test_the_plan_hash_forgets_how_the_plan_was_written(sites: list[str], spelled_out: bool) -> None:
    more = "network: {preset: lean}\ntask: feta\n" if spelled_out else "# a comment\n"
    text = f"sites: {{{', '.join(sites)}}}\n{more}name: x\nprivacy: {{mode: 'off'}}\nschedule: {{rounds: 2}}\n"
    reference = "name: x\nprivacy: {mode: off}\nschedule:\n  rounds: 2\nsites: {a: {}, b: {weight: 2}, c: {}}\n"
    both = [manifest(plan=parse_plan(each, "p").content).plan_hash for each in (text, reference)]
    assert both[0] == both[1]


@given(st.integers(0, 2**63 - 1), st.floats(1e-6, 1e3), st.text(min_size=1, max_size=100).filter(str.isprintable))
def test_a_manifest_survives_its_own_json(seed: int, rate: float, name: str) -> None:
    plan = toy.plan().content
    training = plan.training.model_copy(update={"learning_rate": rate})
    made = manifest(plan=plan.model_copy(update={"seed": seed, "training": training, "name": name}))
    again = Manifest.from_json(made.to_json())
    assert (again, again.plan_hash) == (made, made.plan_hash)


def test_everything_in_a_manifest_moves_its_hash() -> None:
    changes: dict[str, object] = {
        "study": "cd" * 16,
        "quorum": 2,
        "noise_multiplier": 1.0,
        "architecture": {"preset": "other"},
        "parameters": 1,
        "initial_model": "0" * 64,
        "code_version": "1",
        "plan": toy.plan(rounds=4).content,
        "trained": ((0, 10),),
        "init": Init(model_hash="0" * 64, trained_on="public data: made-up brains"),
        "parent": Parent(plan_hash="0" * 64, last_round=2, spent=()),
    }
    assert set(changes) == set(Manifest.model_fields) - {"schema_version"}
    hashes = {manifest(**{name: value}).plan_hash for name, value in changes.items()}
    assert len(hashes | {manifest().plan_hash}) == len(changes) + 1


def test_a_manifest_in_another_spelling_is_refused() -> None:
    data = manifest().to_json()
    spaced = json.dumps(json.loads(data), sort_keys=True).encode()
    backwards = json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode()
    left_out = json.loads(data)
    del left_out["plan"]["network"]
    shorter = json.dumps(left_out, sort_keys=True, separators=(",", ":")).encode()
    twice = data.replace(b'"quorum":3', b'"quorum":1,"quorum":3')
    for other in (spaced, backwards, shorter, data + b"\n", twice):
        assert other != data
        with pytest.raises(PlanError, match="the study's manifest is not in canonical form"):
            Manifest.from_json(other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"run": "rm -rf /"}, "run: Extra inputs are not permitted"),
        ({"study": "x"}, "study: String should match pattern"),
        ({"parameters": 2**40}, "parameters: Input should be less than or equal to"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: Input should be greater than 0"),
        ({"quorum": "3"}, "quorum: Input should be a valid integer"),
        ({"initial_model": "AB" * 32}, "initial_model: String should match pattern"),
        ({"trained": []}, "trained: Tuple should have at least 1 item"),
        ({"trained": [[0, 5], [5, 9]]}, "trained: ranges must ascend, with gaps between them"),
        ({"trained": [[0, 1001]]}, "trained: ranges must ascend, with gaps between them, within the parameters"),
    ],
)
def test_a_manifest_that_is_none_is_refused(change: dict[str, object], says: str) -> None:
    data = json.loads(manifest().to_json()) | change
    with pytest.raises(PlanError, match="the study's manifest cannot be read") as caught:
        Manifest.from_json(json.dumps(data).encode())
    assert says in str(caught.value)
    assert "use the coordinator's version" in str(caught.value)


@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    with pytest.raises(PlanError):
        Manifest.from_json(data)


def test_a_plan_is_frozen() -> None:
    plan: StudyPlan = toy.plan().content
    with pytest.raises(ValueError, match="frozen"):
        plan.seed = 8
