from __future__ import annotations

import secrets

import numpy as np
import pytest

from fedseg.errors import ProtocolError
from fedseg.federation.vector import Weights
from fedseg.plan import Manifest
from fedseg.runtime import events
from fedseg.runtime.simulation import simulate
from tests.runtime import toy
from tests.runtime.threads import Failure, Outcome, run

TARGETS = {"a": 1.0, "b": 2.0, "c": -0.5}
FIVE = {**TARGETS, "d": 0.3, "e": 1.7}


def trainers(targets: dict[str, float]) -> dict[str, toy.PullTrainer]:
    return {site: toy.PullTrainer(target) for site, target in targets.items()}


def of(targets: dict[str, float], mode: str, rounds: int = 3) -> Manifest:
    more = f"quorum: {len(targets) - 1}" if mode == "plain" else ""
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
