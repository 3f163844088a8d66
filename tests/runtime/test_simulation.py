from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import Instruction, Join, Wait
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.simulation import simulate
from tests.runtime import toy
from tests.runtime.threads import FailingLink, Failure, Outcome, Study, contradictions, run

TARGETS = {"a": 1.0, "b": 2.0, "c": -0.5}
FIVE = {**TARGETS, "d": 0.3, "e": 1.7}


def trainers(targets: dict[str, float]) -> dict[str, toy.PullTrainer]:
    return {site: toy.PullTrainer(target) for site, target in targets.items()}


def of(targets: dict[str, float], mode: str, rounds: int = 3, *rules: str) -> Manifest:
    quorum = [f"quorum: {len(targets) - 1}"] if mode == "plain" else []
    more = ", ".join([*quorum, *rules])
    return toy.manifest(toy.plan(tuple(targets), mode=mode, rounds=rounds, more=more))


def same(outcome: Outcome, weights: Weights) -> None:
    np.testing.assert_array_equal(outcome.weights, weights)
    for own in outcome.own.values():
        assert own is not None
        np.testing.assert_array_equal(own, weights)


@pytest.mark.parametrize("targets", [TARGETS, FIVE])
def test_secure_and_plain_give_the_same_model_bit_for_bit(targets: dict[str, float]) -> None:
    ends = {
        mode: simulate(of(targets, mode), toy.INITIAL, toy.LAYOUT, trainers(targets), entropy=secrets.token_bytes)
        for mode in ("secure", "plain")
    }
    np.testing.assert_array_equal(ends["secure"][0], ends["plain"][0])
    assert ends["secure"][1] == ends["plain"][1]
    assert ends["secure"][1].history == tuple((number, tuple(sorted(targets))) for number in (1, 2, 3))
    # Halfway to the mean of the targets, three times.
    np.testing.assert_allclose(ends["secure"][0], np.mean(list(targets.values())) * 7 / 8, atol=1e-4)


def test_two_runs_are_one() -> None:
    first, second = (
        simulate(of(TARGETS, "secure"), toy.INITIAL, toy.LAYOUT, trainers(TARGETS), entropy=secrets.token_bytes)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], second[0])


def test_weights_count() -> None:
    plan = toy.plan(rounds=1).content
    heavy = plan.model_copy(update={"sites": {**plan.sites, "b": plan.sites["b"].model_copy(update={"weight": 2})}})
    manifest = toy.manifest(toy.plan(rounds=1)).model_copy(update={"plan": heavy})
    weights, _ = simulate(manifest, toy.INITIAL, toy.LAYOUT, trainers(TARGETS), entropy=secrets.token_bytes)
    np.testing.assert_allclose(weights, (1.0 + 2 * 2.0 - 0.5) / 4 / 2, atol=1e-4)


def test_secure_equals_plain_with_a_loss_in_every_round_too() -> None:
    secure: tuple[Failure, ...] = (("b", "share", 1, 1), ("e", "upload", 2, 1), ("a", "unmask", 3, 1))
    # A site lost before it sends is lost to the plain sum in the same round; one lost after is in both.
    plain: tuple[Failure, ...] = (("b", "upload", 1, 1), ("e", "upload", 2, 1))
    ends = [run(of(FIVE, mode), trainers(FIVE), *lost) for mode, lost in (("secure", secure), ("plain", plain))]
    expected = ((1, ("a", "c", "d", "e")), (2, ("a", "b", "c", "d")), (3, ("a", "b", "c", "d", "e")))
    for end in ends:
        assert end.history == expected
        same(end, ends[0].weights)
    losses = [event.why for event in ends[0].told if isinstance(event, events.SiteLost)]
    assert losses == [
        f"withdrew (interrupted) in {phase}" for phase in ("ShareKeys", "MaskedInputCollection", "Unmasking")
    ]  # fmt: skip


@pytest.mark.parametrize("step", ["share", "upload"])
def test_a_second_attempt_trains_nothing_anew_and_changes_nothing(step: str) -> None:
    sites = trainers(TARGETS)
    disturbed = run(of(TARGETS, "secure"), sites, ("c", step, 2, 1))
    assert [(row.round, row.attempt, row.state) for row in disturbed.archive.rounds()] == [
        (1, 1, "closed"), (2, 1, "abandoned"), (2, 2, "closed"), (3, 1, "closed"),
    ]  # fmt: skip
    assert {site: trainer.trained for site, trainer in sites.items()} == {site: [1, 2, 3] for site in TARGETS}
    same(disturbed, run(of(TARGETS, "secure"), trainers(TARGETS)).weights)


def test_losses_after_the_sum_void_nothing_down_to_the_threshold() -> None:
    undisturbed = run(of(TARGETS, "secure"), trainers(TARGETS))
    disturbed = run(of(TARGETS, "secure"), trainers(TARGETS), ("b", "unmask", 1, 1), ("c", "unmask", 3, 1))
    same(disturbed, undisturbed.weights)
    assert disturbed.history == undisturbed.history


def test_too_few_to_unmask_voids_the_round_for_good() -> None:
    sites = trainers(TARGETS)
    disturbed = run(of(TARGETS, "secure", 1), sites, ("b", "unmask", 1, 1), ("c", "unmask", 1, 1))
    assert [(row.round, row.attempt, row.state) for row in disturbed.archive.rounds()] == [
        (1, 1, "void"),
        (2, 1, "closed"),
    ]
    assert all(trainer.trained == [1, 2] for trainer in sites.values())
    same(disturbed, disturbed.weights)
    np.testing.assert_allclose(disturbed.weights, np.mean(list(TARGETS.values())) / 2, atol=1e-4)


def test_what_a_trainer_says_when_it_fails_is_what_the_simulation_says() -> None:
    def fail(_: int) -> None:
        raise ProtocolError("diverged")

    plan = toy.plan(rounds=1, absent_s=1).content
    hasty = plan.model_copy(update={"schedule": plan.schedule.model_copy(update={"deadline_s": 1.0})})
    manifest = toy.manifest(toy.plan(rounds=1)).model_copy(update={"plan": hasty})
    broken = trainers(TARGETS) | {"a": toy.PullTrainer(1.0, before=fail)}
    with pytest.raises(ProtocolError, match="diverged"):
        simulate(manifest, toy.INITIAL, toy.LAYOUT, broken, entropy=secrets.token_bytes)


# Whole studies in which sites stay away.


@dataclass(frozen=True)
class AbsentLink(FailingLink):
    """The link of a site that hears nothing of some rounds."""

    rounds: tuple[int, ...] = ()

    def poll(self, session: bytes | None) -> Instruction:
        told = super().poll(session)
        if isinstance(told, Join) and told.header.round in self.rounds:
            self.withdraw(told.header.sid0(), "interrupted")
            return Wait("away")
        return told


class NewestServer:
    """Whatever coordinator a study has at the moment."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study.coordinator, name)


def with_absences(study: Study, absences: Mapping[str, tuple[int, ...]], *failures: Failure) -> Study:
    server: Any = NewestServer(study)
    study.links = lambda site: AbsentLink(server, site, failures, absences.get(site, ()))
    return study


def score(weights: Mapping[str, Any]) -> float:
    """The first model is fair, the one halfway to the targets good, all beyond are bad."""
    mean = float(np.mean([value.mean() for value in weights.values()]))
    return 0.5 if mean < 0.2 else 0.9 if mean < 0.6 else 0.2


def scorers(targets: dict[str, float]) -> dict[str, toy.PullTrainer]:
    """Site a has nobody to validate on."""
    return {
        site: toy.PullTrainer(target, score=score if site != "a" else lambda _: None)
        for site, target in targets.items()
    }


ROLLBACK = "rollback: {drop: 0.3}"
NEAR = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.05, "e": 0.95}
"""Targets so near to each other that the score of a model says how many rounds it has seen, whoever was away."""


def test_secure_equals_plain_over_a_whole_study_with_losses_absences_and_a_rollback(tmp_path: Path) -> None:
    """The same contributors in each round, though they are lost in ways that only one of the modes has."""
    away = {"d": (1, 6), "e": (4,)}
    secure: tuple[Failure, ...] = (
        ("b", "share", 2, 1), ("e", "upload", 3, 1), ("a", "confirm", 4, 1), ("c", "unmask", 5, 1),
        # Two are lost, so that the first attempt is.
        ("a", "join", 7, 1), ("b", "upload", 7, 1),
    )  # fmt: skip
    plain: tuple[Failure, ...] = (("b", "upload", 2, 1), ("e", "upload", 3, 1))
    ends: list[Outcome] = []
    for mode, lost in (("secure", secure), ("plain", plain)):
        study = with_absences(Study(of(NEAR, mode, 7, ROLLBACK), scorers(NEAR)), away, *lost)
        study.may_reuse = True
        ends.append(study.run())
        assert study.errors == {}
        folder = tmp_path / mode
        folder.mkdir()
        assert contradictions(folder, study.manifest.study, ends[-1].logs) == []
    everybody = tuple(NEAR)
    without = {site: tuple(other for other in everybody if other != site) for site in NEAR}
    history = [without["d"], without["b"], without["e"], without["e"], everybody, without["d"], everybody]
    for end in ends:
        assert end.history == tuple(enumerate(history, 1))
        same(end, ends[0].weights)
        assert [body["rolled_back"] for kind, body in end.logs["server"].entries() if kind == "closed"] == [
            False, False, True, False, True, False, True,
        ]  # fmt: skip
    assert ends[0].rounds[-2:] == [(7, 1, "abandoned"), (7, 2, "closed")]
    first, second = ([row for row in end.archive.rounds() if row.state == "closed"] for end in ends)
    for one, other in zip(first, second, strict=True):
        assert (one.model_hash, one.next_model, one.score, one.relative_error) == (
            other.model_hash, other.next_model, other.score, other.relative_error,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "away", "restart"),
    [
        *(("secure", away, None) for away in ((), (3,), (2, 3), (3, 4), (2, 3, 4), (1, 2, 3, 4))),
        *(("secure", (2, 3), restart) for restart in (2, 3, 4)),
        *(("plain", (2, 3), restart) for restart in (None, 3)),
    ],
)
def test_scores_that_collapse_bring_the_best_model_back_everywhere(
    mode: str, away: tuple[int, ...], restart: int | None, tmp_path: Path
) -> None:
    """Round 3 finds that the model of round 2 is worse than that of round 1, and so does round 5."""
    sites = scorers(NEAR)
    study = with_absences(Study(of(NEAR, mode, 5, ROLLBACK), sites), {"e": away})
    study.may_reuse, pending = True, [restart]

    def start_again(number: int) -> None:
        if number in pending:
            pending.remove(number)
            study.start()

    sites["a"].before = start_again
    outcome = study.run()
    assert study.errors == {}
    rows = [row for row in outcome.archive.rounds() if row.state == "closed"]
    first = rows[0].next_model
    assert [row.next_model == first for row in rows] == [True, False, True, False, True]
    assert [row.model_hash == first for row in rows] == [False, True, False, True, False]
    assert [row.score for row in rows] == pytest.approx([0.5, 0.9, 0.2, 0.9, 0.2])
    np.testing.assert_allclose(outcome.weights, 0.5 * np.mean([NEAR[site] for site in rows[0].contributors]), atol=1e-4)
    same(outcome, outcome.weights)
    assert all(memory.best() == study.memories["a"].best() for memory in study.memories.values())
    assert contradictions(tmp_path, study.manifest.study, outcome.logs) == []


@pytest.mark.parametrize("may_reuse", [False, True])
def test_after_a_rollback_other_contributors_than_before_need_the_policy(may_reuse: bool) -> None:
    """Site e missed round 2, over the model of round 1, to which round 3 goes back; in round 4 it is there again."""
    study = with_absences(Study(of(NEAR, "secure", 4, ROLLBACK), scorers(NEAR)), {"e": (2,)})
    study.may_reuse = may_reuse
    outcome = study.run()
    contributors = dict(outcome.history)
    assert contributors[2] == ("a", "b", "c", "d")
    assert [number for number, _ in outcome.history] == ([1, 2, 3, 4] if may_reuse else [1, 2, 3])
    reused = [body for kind, body in outcome.logs["a"].entries() if kind == "reused"]
    if may_reuse:
        assert study.errors == {}
        assert [(body["round"], body["earlier_round"], body["u3"]) for body in reused] == [(4, 2, list(NEAR))]
        return
    assert reused == []
    says = "would be a second sum over the model of round 2, of other contributors"
    assert any(says in str(note) for site in NEAR for note in study.notes[site])
    assert study.coordinator.reason == "fewer than 4 sites could finish round 6"
