from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import Interrupted, PlanError, ProtocolError
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest, Parent
from fedseg.runtime.disk_memory import DiskMemory
from fedseg.runtime.extension import check_extension
from fedseg.runtime.local_round import LocalRounds, as_sent
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.encoding import Encoded, rounding_seed
from tests.runtime import quadratics, toy
from tests.runtime.quadratics import OPTIMUM, QUIET, SITES, Ended, QuadraticTrainer, by_hand, manifest, trainers
from tests.runtime.test_restarts import MortalStudy
from tests.runtime.threads import Killed, Study, contradictions

ALL = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "scaffold", "fedbn", "ditto")
AT_HOME = ("scaffold", "fedbn", "ditto")


def far(weights: Weights) -> float:
    return float(np.linalg.norm(weights - OPTIMUM) / np.linalg.norm(OPTIMUM))


def same(study: Study, expected: Ended) -> None:
    """Everybody holds these models, bit for bit."""
    np.testing.assert_array_equal(study.coordinator.weights, expected.released)
    for site in SITES:
        own, personal = study.own[site], study.personal[site]
        assert own is not None
        np.testing.assert_array_equal(own, expected.released)
        assert (personal is None) == (expected.personal[site] is None)
        if personal is not None:
            np.testing.assert_array_equal(personal, expected.personal[site])


@pytest.mark.parametrize("mode", ["secure", "plain"])
@pytest.mark.parametrize("name", ALL)
def test_under_secure_aggregation_every_strategy_is_what_it_is_by_hand_bit_for_bit(name: str, mode: str) -> None:
    study = manifest(f"name: {name}", mode=mode)
    made = Study(study, trainers(study))
    made.run()
    assert made.errors == {}
    same(made, by_hand(study))
    assert (made.personal["a"] is not None) == (name in ("fedbn", "ditto"))


@pytest.mark.parametrize("name", ALL)
def test_at_the_studys_end_a_site_forgets_what_no_more_rounds_can_need(name: str) -> None:
    study = manifest(f"name: {name}", rounds=3)
    made = Study(study, trainers(study))
    made.run()
    assert made.errors == {}
    for memory in made.memories.values():
        kept = [
            number for number in range(1, 4) if (found := memory.kept(number)) is not None and found.round == number
        ]
        assert kept == ([3] if name in ("fedbn", "ditto") else [])


def test_no_two_strategies_are_one() -> None:
    ends = {name: by_hand(manifest(f"name: {name}")).released.tobytes() for name in ALL}
    assert ends["ditto"] == ends["fedavg"]
    assert len(set(ends.values())) == len(ALL) - 1


def test_scaffold_is_the_papers_and_converges_where_fedavg_drifts() -> None:
    study = manifest("name: scaffold", rounds=40, rate=0.2)
    ended = by_hand(study)
    expected, variate = quadratics.scaffold(study.plan)
    np.testing.assert_allclose(ended.released, expected, atol=1e-4)
    np.testing.assert_allclose(ended.strategy.moments(ended.state)[0], variate, atol=1e-3)
    drifted = by_hand(manifest("name: fedavg", rounds=40, rate=0.2)).released
    assert far(ended.released) < 1e-4 and far(drifted) > 0.02


def test_scaffolds_variates_keep_their_mean_where_the_clip_shortens_updates() -> None:
    study = manifest("name: scaffold", rounds=4, more=", clip: 8.0")
    assert [encoded.rescaled for encoded in first_updates(study)] == [True] * 3
    ended = by_hand(study)
    (shared,) = ended.strategy.moments(ended.state)
    kept = [each for site in SITES if (each := ended.memories[site].kept(4))]
    assert [each.round for each in kept] == [4, 4, 4]
    np.testing.assert_allclose(np.mean([each.vector for each in kept], axis=0), shared, atol=1e-5)
    assert np.abs(shared).max() > 0.1


def first_updates(study: Manifest) -> list[Encoded]:
    """What sites send in round 1; what they take for sent is that."""
    code, found = toy.code(study), []
    for site, trainer in trainers(study).items():
        rounds = LocalRounds(study, trainer, toy.LAYOUT, SiteMemory())
        trained = rounds.train(rounds.turn(1, 0, Strategy.of(study).first(toy.INITIAL)), **QUIET)
        encoded = code.encode(trained.update, 1, rounding_seed(3, 1, site))
        sent = as_sent(code, encoded, 1)
        np.testing.assert_allclose(sent, trained.update * np.float32(encoded.factor), rtol=1e-5, atol=2 / code.scale)
        found.append(encoded)
    return found


def test_dittos_own_models_are_the_papers_and_lie_nearer_to_their_sites() -> None:
    study = manifest("name: ditto, proximal: 0.5", rounds=6)
    ended = by_hand(study)
    for site in SITES:
        shared, own = quadratics.ditto(study.plan, site)
        personal = ended.personal[site]
        assert personal is not None
        np.testing.assert_allclose(ended.released, shared, atol=1e-4)
        np.testing.assert_allclose(personal, own, atol=1e-4)
        target = quadratics.LOSSES[site].target
        assert np.linalg.norm(personal - target) < np.linalg.norm(shared - target)


def test_ditto_says_how_far_both_of_its_trainings_are() -> None:
    told: list[tuple[int, int]] = []
    study = manifest("name: ditto")
    rounds = LocalRounds(study, trainers(study)["a"], toy.LAYOUT, SiteMemory())
    turn = rounds.turn(1, 0, Strategy.of(study).first(toy.INITIAL))
    trained = rounds.train(turn, **{**QUIET, "on_step": lambda *step: told.append(step)})
    rounds.keep(trained, trained.update)
    assert told == [(done, 10) for done in range(1, 11)]


def test_fedprox_stays_nearer_to_where_its_round_began() -> None:
    texts = ("name: fedavg", "name: fedprox, proximal: 1.0", "name: fedprox, proximal: 4.0")
    moved = [float(np.linalg.norm(by_hand(manifest(text, rounds=1)).released)) for text in texts]
    assert moved == sorted(moved, reverse=True)
    assert moved[2] < 0.9 * moved[0]


def test_under_fedbn_the_normalisation_stays_at_its_site() -> None:
    ended, norms = by_hand(manifest("name: fedbn", rounds=4)), set()
    np.testing.assert_array_equal(ended.released[:10], toy.INITIAL[:10])
    for site in SITES:
        personal = ended.personal[site]
        assert personal is not None
        np.testing.assert_array_equal(personal[10:], ended.released[10:])
        # Nobody else's gradient has ever moved them: as alone, they near the site's own target.
        target = quadratics.LOSSES[site].target[:10]
        assert np.linalg.norm(personal[:10] - target) < 0.8 * np.linalg.norm(target)
        norms.add(personal[:10].tobytes())
    assert len(norms) == 3
    assert ended.strategy.dimension == toy.SIZE - 10


@pytest.mark.parametrize("name", AT_HOME)
@pytest.mark.parametrize("step", ["upload", "published"])
def test_sites_that_are_killed_end_with_the_same_models(name: str, step: str, tmp_path: Path) -> None:
    study = manifest(f"name: {name}")
    killed = MortalStudy(study, trainers(study), ("a", step, "before"), ("b", step, "after"))
    if step == "published":
        killed.dying = lambda _: None
    outcome = killed.run()
    assert (killed.deaths, killed.errors) == ([], {})
    same(killed, by_hand(study))
    assert contradictions(tmp_path, study.study, outcome.logs) == []


class TornMemory(SiteMemory):
    """A disk whose process dies between what a round keeps here and its update, once in round 2."""

    def __init__(self) -> None:
        super().__init__()
        self.torn = False

    def save_contribution(self, round_number: int, model: str, vector: object) -> None:
        if round_number == 2 and not self.torn:
            self.torn = True
            raise Killed
        super().save_contribution(round_number, model, vector)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", AT_HOME)
def test_a_round_that_was_torn_is_trained_again_from_where_it_began(name: str) -> None:
    study = manifest(f"name: {name}")
    torn = Study(study, trainers(study))
    memory = torn.memories["b"] = TornMemory()
    torn.run()
    assert memory.torn and torn.errors == {}
    assert torn.trainers["b"].trained.count(2) == 2 * torn.trainers["a"].trained.count(2)
    same(torn, by_hand(study))


@pytest.mark.parametrize("name", AT_HOME)
def test_a_second_attempt_trains_nothing_anew_and_changes_nothing(name: str) -> None:
    study = manifest(f"name: {name}")
    disturbed = Study(study, trainers(study), ("c", "upload", 2, 1))
    outcome = disturbed.run()
    assert outcome.rounds[1:3] == [(2, 1, "abandoned"), (2, 2, "closed")]
    same(disturbed, by_hand(study))


def test_a_round_that_brought_no_sum_leaves_nothing_behind() -> None:
    """What was kept of void round 2 is of no closed round: the next begins where that began."""
    memory = SiteMemory()
    study = manifest("name: ditto")
    rounds, state = LocalRounds(study, trainers(study)["a"], toy.LAYOUT, memory), Strategy.of(study).first(toy.INITIAL)
    kept = []
    for number, closed in ((1, 0), (2, 1), (3, 1)):
        turn = rounds.turn(number, closed, state)
        trained = rounds.train(turn, **QUIET)
        rounds.keep(trained, trained.update)
        kept.append(turn.kept.round if turn.kept else None)
    assert kept == [None, 1, 1]
    assert memory.kept(0) is None
    assert [each.round for closed in (1, 2, 3) if (each := memory.kept(closed))] == [1, 1, 3]


def test_a_site_that_lost_its_correction_trains_no_further() -> None:
    study = manifest("name: scaffold")
    memory = SiteMemory()
    rounds = LocalRounds(study, trainers(study)["a"], toy.LAYOUT, memory)
    state = Strategy.of(study).first(toy.INITIAL)
    turn = rounds.turn(3, 2, state)
    memory.save_kept(1, 0, np.zeros(toy.SIZE, dtype=np.float32))
    for each in (turn, rounds.turn(3, 2, state)):
        with pytest.raises(ProtocolError, match="what this site kept of round 2 is missing") as caught:
            rounds.train(each, **QUIET)
        assert "restore this site's state folder as it was last, or begin another study" in str(caught.value)


def test_a_training_that_is_stopped_keeps_nothing() -> None:
    def stop(_: int) -> None:
        raise Interrupted("enough")

    study, memory = manifest("name: ditto"), SiteMemory()
    trainer = QuadraticTrainer(study.plan, "a")
    rounds = LocalRounds(study, trainer, toy.LAYOUT, memory)
    trained = rounds.train(rounds.turn(1, 0, Strategy.of(study).first(toy.INITIAL)), **QUIET)
    trainer.before = stop
    with pytest.raises(Interrupted, match="enough"):
        rounds.keep(trained, trained.update)
    assert memory.kept(9) is None and rounds.personal(toy.INITIAL, 9) is None


def test_an_update_that_lacks_a_layer_is_refused() -> None:
    class Broken(toy.PullTrainer):
        def update(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {"bias": np.zeros(10, dtype=np.float32)}

    study = manifest("name: fedavg")
    rounds = LocalRounds(study, Broken(0.0), toy.LAYOUT, SiteMemory())
    with pytest.raises(ProtocolError, match="the trainer's update lacks 1 of the layers that the plan trains"):
        rounds.train(rounds.turn(1, 0, Strategy.of(study).first(toy.INITIAL)), **QUIET)


def test_a_folder_keeps_what_a_memory_does_for_its_owner_alone(tmp_path: Path) -> None:
    folder, memory = DiskMemory(tmp_path), SiteMemory()
    for number, closed in ((1, 0), (2, 1), (3, 1), (4, 3), (100_000, 4)):
        for each in (folder, memory):
            each.save_kept(number, closed, np.full(3, number, dtype=np.float32))
        for asked in (0, 1, 2, 3, 4, 200_000):
            mine, its = folder.kept(asked), memory.kept(asked)
            assert (mine and mine.round) == (its and its.round)
            assert mine is None or mine.vector[0] == mine.round
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["kept-00004.npy", "kept-100000.npy"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    folder.erase_updates()
    assert folder.kept(4) is not None


def test_a_study_under_scaffold_is_not_extended_and_one_under_ditto_is() -> None:
    for name, refused in (("scaffold", True), ("ditto", False)):
        old = manifest(f"name: {name}")
        longer = manifest(f"name: {name}", rounds=3)
        new = longer.model_copy(update={"parent": Parent(plan_hash=old.plan_hash, last_round=2, spent=())})
        if not refused:
            check_extension(old, new)
            continue
        with pytest.raises(PlanError, match="a study under scaffold cannot have more rounds") as caught:
            check_extension(old, new)
        assert "which more of them would change" in str(caught.value)
        assert "begin another study from this one's model" in str(caught.value)
