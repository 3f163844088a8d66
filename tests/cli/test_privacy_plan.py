"""`fedseg privacy-plan`: what it says of a budget, its JSON, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedseg.cli import privacy_plan
from fedseg.plan.study import StudyPlan
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import Event
from tests.cli.conftest import Command

SIZES = {"all": 300_000, "decoder": 60_000, "head": 72, "norms": 600}
PLAN = """name: small
privacy: {mode: local, epsilon: 8, delta: 1e-5, sampling_rate: 1, reserve_rounds: 2}
network: {preset: small}
training: {steps: 2}
schedule: {rounds: 10}
sites:
  a: {public_subjects: 80}
  b: {public_subjects: 40}
  c: {public_subjects: 80}
"""
FLAGS = ("--epsilon", "8", "--subjects", "80", "--rounds", "100", "--network", "small", "--rate", "1", "--steps", "1")


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of parameters without a network, which takes seconds."""
    monkeypatch.setattr(privacy_plan, "_parameters", lambda _: SIZES)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def _facts(fedseg: Command, *words: str | Path) -> dict[str, Any]:
    answer = fedseg("privacy-plan", *words, "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert isinstance(facts, dict)
    return facts


def test_a_plan_in_words(fedseg: Command, plan: Path) -> None:
    answer = fedseg("privacy-plan", plan)
    assert answer.code == 0, answer.err
    for sentence in (
        "Budget: epsilon 8 at delta 1e-05 for each subject (a pregnancy), over 10 rounds and 2 in reserve, 2 steps",
        "Sites: 3 with 200 subjects; the smallest is b with 40.",
        "Noise multiplier: 2.941, local noise; epsilon is reckoned by privacy loss distributions (PLD).",
        "after round 10, of which the last adds 0.438; 7.999 with the reserve.",
        "Noise ratio of one step, small network, layers all (300,000 parameters): 40.3 at b, 16.4 for the mean",
        "From scratch this will not learn: the noise ratio of the federation is above 5.",
        "A ratio of 1 means that the noise of a step is as long as the longest mean gradient.",
        "- Start from a pretrained model (fedseg pretrain, then fedseg study create --init).",
        "- Train fewer layers: ratio 0.255 with training.layers: head.",
        "Distribute the noise: ratio 7.42 with privacy.mode: distributed. A round is then one step of all",
        "that takes trust in at least 1 of the other contributors of every sum: that they add their share of the noise",
        "with schedule.rounds: 2.",
        "at all sites together; the plan has 200.",
        "local: 2 steps a round at sampling rate 1; distributed: 1 step a round at sampling rate 1.",
    ):
        assert sentence in answer.out, answer.out
    assert "Draw more subjects" not in answer.out
    assert [line.split()[1::2] for line in answer.out.splitlines() if line.startswith("│ head")] == [
        ["head", "72", "0.255", "0.115"]
    ]


def test_a_plan_in_json(fedseg: Command, plan: Path) -> None:
    facts = _facts(fedseg, plan)
    sigma = facts["noise_multiplier"]
    assert facts["spending"]["first"] == epsilon([Event(sigma, 1.0, 2)], 1e-5)
    assert facts["spending"]["schedule"] == epsilon([Event(sigma, 1.0, 20)], 1e-5)
    assert facts["spending"]["reserve"] == epsilon([Event(sigma, 1.0, 24)], 1e-5) <= 8
    assert facts["smallest_site"] == pytest.approx(sigma * math.sqrt(SIZES["all"]) / 40)
    assert facts["subjects_needed"] == math.ceil(200 * facts["federation"])
    assert facts["sites"] == {"a": 80, "b": 40, "c": 80}
    rows = {(row["layers"], row["privacy"]): row for row in facts["alternatives"]}
    assert set(rows) == {(layers, mode) for layers in SIZES for mode in ("local", "distributed")}
    assert rows["all", "local"]["federation"] == facts["federation"]
    assert rows["head", "distributed"]["dimension"] == 72


def test_a_plan_described_by_options(fedseg: Command) -> None:
    facts = _facts(fedseg, *FLAGS, "--sites", "1")
    assert facts["federation"] == facts["smallest_site"] == pytest.approx(6.003 * math.sqrt(300_000) / 80)
    assert facts["honest_others"] is None
    assert {row["privacy"] for row in facts["alternatives"]} == {"local"}
    answer = fedseg("privacy-plan", *FLAGS, "--sites", "2", "--rate", "0.5", "--rounds", "2")
    assert "- Draw more subjects a step: ratio 4.11 with privacy.sampling_rate: 1." in answer.out
    assert "Take fewer steps" not in answer.out
    assert "Noise can be distributed over three or more sites that aggregate securely." in answer.out


def test_distributed_noise(fedseg: Command) -> None:
    words = ("--epsilon", "8", "--subjects", "80", "--sites", "8", "--rounds", "100", "--mode", "distributed")
    facts = _facts(fedseg, *words)
    assert (facts["honest_others"], facts["sampling_rate"], facts["steps"]) == (4, 1.0, 1)
    assert facts["smallest_site"] is None
    assert facts["federation"] == pytest.approx(facts["noise_multiplier"] * math.sqrt(8 / 4 * 300_000) / 640)
    assert facts["spending"]["accountant"] == "RDP"
    answer = fedseg("privacy-plan", *words)
    assert "7.72 for the pooled step of all 8 sites" in answer.out
    assert "Distribute the noise" not in answer.out


@pytest.mark.parametrize(("layers", "verdict"), [("head", "By its noise, this can work"), ("decoder", "Doubtful: the")])
def test_frozen_layers_need_a_pretrained_model(fedseg: Command, layers: str, verdict: str) -> None:
    answer = fedseg("privacy-plan", *FLAGS, "--sites", "30", "--layers", layers, "--mode", "local")
    assert verdict in answer.out
    assert "- The layers that do not train stay as the first model has them: it must be a pretrained one" in answer.out
    assert "Start from a pretrained model" not in answer.out


def test_nothing_is_advised_that_the_plan_would_refuse(fedseg: Command, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("epsilon: 8", "epsilon: 0.5") + "strategy: {name: fedbn}\n")
    facts = _facts(fedseg, path)
    refused = {(row["layers"], row["privacy"]): row.get("refused", "") for row in facts["alternatives"]}
    assert "fedbn" in refused["head", "local"]
    assert all("fedbn" in refused[layers, "distributed"] for layers in SIZES)
    assert [refused[layers, "local"] for layers in ("all", "decoder", "norms")] == [""] * 3
    advice = " ".join(facts["advice"])
    assert "training.layers: norms" in advice
    assert "training.layers: head" not in advice
    assert "privacy.mode: distributed" not in advice


def test_a_row_that_the_ring_refuses(fedseg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_plan, "_parameters", lambda _: {**SIZES, "all": 10**12})
    answer = fedseg("privacy-plan", *FLAGS)
    assert "refused" in answer.out
    assert "Distribute the noise" not in answer.out


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("delta: 1e-5", "delta: 1e-3", 2, "privacy.delta: 0.001 is too much for 1000 subjects at a"),
        ("mode: local, epsilon: 8,", "mode: off,", 2, "this plan has no privacy, so there is nothing to spread"),
        ("epsilon: 8", "epsilon: 1e-7", 2, "no noise multiplier up to 10000 keeps 24 steps at rate 1 within epsilon"),
        ("epsilon: 8", "epsilon: eight", 2, "privacy.epsilon: input should be a valid number"),
        ("name: small", "aggregation: {quorum: 2}\nname: small", 1, "aggregation.quorum: 2 is below the least"),
    ],
)
def test_what_is_wrong_with_a_plan_has_its_line(
    fedseg: Command, tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("a: {public_subjects: 80}", "a: {public_subjects: 1000}").replace(old, new))
    fedseg("privacy-plan", path).says(1, message, f"{path}:{line}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "without a plan, --epsilon, --subjects, --rounds must be given"),
        (("--epsilon", "8", "--rounds", "3"), "without a plan, --subjects must be given"),
        ((*FLAGS, "--epsilon", "-1"), "privacy.epsilon: input should be greater than 0, not -1.0"),
        ((*FLAGS, "--rate", "2"), "privacy.sampling_rate: input should be less than or equal to 1"),
        ((*FLAGS, "--sites", "2", "--mode", "distributed"), "secure aggregation needs at least 3 sites"),
        ((*FLAGS, "--mode", "distributed", "--steps", "2"), "each round is one pooled step"),
        (
            (*FLAGS, "--delta", "1e-3", "--subjects", "500"),
            "privacy.delta: 0.001 is too much for 500 subjects at",
        ),
        ((*FLAGS, "--epsilon", "1e-7"), "no noise multiplier up to 10000 keeps 100 steps"),
    ],
)
def test_options_that_describe_no_plan(fedseg: Command, words: tuple[str, ...], message: str) -> None:
    answer = fedseg("privacy-plan", *words)
    answer.says(2, message)
    assert "where:" not in answer.err


def test_a_plan_and_options_contradict_each_other(fedseg: Command, plan: Path, tmp_path: Path) -> None:
    fedseg("privacy-plan", plan, "--sites", "3").says(2, "a plan and --sites were both given")
    fedseg("privacy-plan", tmp_path / "none.yaml").says(2, "there is no such plan")


def test_the_network_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plan = StudyPlan.model_validate(
        {
            "name": "x",
            "network": {"preset": "small"},
            "privacy": {"mode": "off"},
            "schedule": {"rounds": 1},
            "sites": {name: {} for name in "abc"},
        }
    )
    found = privacy_plan._parameters(plan)
    assert found["all"] == 302_525
    assert 72 == found["head"] < found["norms"] < found["decoder"] < found["all"]
