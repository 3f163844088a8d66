from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from fedseg.errors import SiteFault, StaleSession, StorageError
from fedseg.federation.exchange import (
    Confirm,
    Enrolled,
    Finished,
    Join,
    Paused,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
)
from fedseg.federation.vector import model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.course import StudyState
from fedseg.secagg.messages import Consistency, Shares
from fedseg.secagg.site import Advertised, Masked, contribute
from tests.runtime import toy
from tests.runtime.bench import ABANDONED, ADVERTISE, CONFIRM, MASK, SHARE, UNMASK, Bench, Player

FIVE = ("a", "b", "c", "d", "e")
PHASES = {"secure": (SHARE, MASK, CONFIRM, UNMASK), "plain": (MASK,)}
SUMMED = (CONFIRM, UNMASK)
"""Phases in which all vectors are in the sum."""


def five(mode: str = "secure", rounds: int = 2) -> Bench:
    more = "quorum: 4" if mode == "plain" else ""
    return Bench(toy.manifest(toy.plan(FIVE, mode=mode, rounds=rounds, more=more)))


def three(rounds: int = 2) -> Bench:
    return Bench(toy.manifest(toy.plan(rounds=rounds)))


def private(rounds: int = 1, reserve: int = 1) -> Manifest:
    plain = toy.manifest(toy.plan(rounds=rounds))
    privacy = plain.plan.privacy.model_copy(update={"mode": "local", "epsilon": 8.0, "reserve_rounds": reserve})
    return plain.model_copy(
        update={"noise_multiplier": 1.0, "plan": plain.plan.model_copy(update={"privacy": privacy})}
    )


def test_it_waits_by_name_for_every_site_to_come_once() -> None:
    bench = three()
    assert bench.players["b"].ask() == Wait("a, c to confirm the roster and join")
    assert bench.players["a"].ask() == Wait("c to confirm the roster and join")
    bench.players["a"].ask()
    assert bench.stands_at(StudyState.GATHERING)
    assert bench.coordinator.reason == "c to confirm the roster and join"
    assert bench.events == [
        events.Waiting("a, c to confirm the roster and join"), events.Waiting("c to confirm the roster and join"),
    ]  # fmt: skip
    assert isinstance(bench.players["c"].ask(), Join)
    assert bench.stands_at(StudyState.RUNNING)
    assert bench.events[-1] == events.RoundStarted(1, 2, 1, 0)


def test_it_says_who_has_yet_to_enrol_and_who_to_confirm() -> None:
    bench = three()
    everybody = bench.enrolled
    bench.enrolled = Enrolled(everybody.server_key, {"a": everybody.keys["a"], "c": everybody.keys["c"]})
    assert bench.players["c"].ask() == Wait("b to enrol; a to confirm the roster and join")
    assert bench.coordinator.roster() == bench.enrolled
    bench.enrolled = everybody
    assert bench.players["c"].ask() == Wait("a, b to confirm the roster and join")
    bench.gather()
    assert bench.stands_at(StudyState.RUNNING)


@pytest.mark.parametrize("mode", ["secure", "plain"])
def test_two_rounds_of_everybody(mode: str) -> None:
    bench, weights = five(mode), toy.INITIAL
    for number in (1, 2):
        bench.one_round()
        weights = bench.expected(weights, number, *FIVE)
        np.testing.assert_array_equal(bench.coordinator.weights, weights)
    assert bench.stands_at(StudyState.COMPLETE)
    assert bench.coordinator.history == ((1, FIVE), (2, FIVE))
    assert bench.lost == {}
    answer = bench.players["a"].ask()
    assert isinstance(answer, Finished)
    assert (answer.head.model_hash, answer.head.closed_round, answer.history) == (
        model_hash(weights), 2, bench.coordinator.history,
    )  # fmt: skip
    phases = [event.phase for event in bench.events if isinstance(event, events.PhaseStarted)]
    assert phases == 2 * list(PHASES[mode])
    size = 4 * (toy.SIZE + 1)
    assert [row.bytes_received for row in bench.archive.rounds()] == [5 * size, 5 * size]


def _silent(bench: Bench, player: Player) -> str:
    bench.wait(6, *bench.others(player.site))
    return "no sign of life"


def _restarted(bench: Bench, player: Player) -> str:
    player.restart()
    player.ask()
    return "restarted during the round"


def _withdrew(bench: Bench, player: Player) -> str:
    assert player.header is not None
    bench.coordinator.withdraw(player.site, player.header.sid0(), "failed")
    return "withdrew (failed)"


def _slow(bench: Bench, player: Player) -> str:
    """The others answer, this one is at work until the deadline is over."""
    for site in bench.others(player.site):
        bench.players[site].turn()
    for _ in range(5):
        bench.wait(4.5, *FIVE)
    return "did not answer"


@pytest.mark.parametrize(("mode", "phase"), [(mode, phase) for mode, phases in PHASES.items() for phase in phases])
@pytest.mark.parametrize("lose", [_silent, _restarted, _withdrew, _slow])
def test_one_of_five_lost_in_any_phase(mode: str, phase: str, lose: Callable[[Bench, Player], str]) -> None:
    bench = five(mode)
    bench.until(phase)
    why = lose(bench, bench.players["c"])
    bench.one_round(*bench.others("c"))
    # Lost after its vector was summed, a site is still in the sum.
    contributors = FIVE if phase in SUMMED else bench.others("c")
    assert bench.coordinator.history == ((1, contributors),)
    np.testing.assert_array_equal(bench.coordinator.weights, bench.expected(toy.INITIAL, 1, *contributors))
    assert bench.lost == {"c": f"{why} in {phase}"}
    (row,) = [row for row in bench.archive.rounds() if row.state == "closed"]
    assert row.lost == ({} if phase in SUMMED else bench.lost)
    bench.one_round()
    assert bench.coordinator.history[-1] == (2, FIVE)


def test_a_site_that_stays_away_is_not_waited_for_beyond_its_absence() -> None:
    bench = five()
    bench.one_round()
    bench.wait(6, *bench.others("e"))
    bench.one_round(*bench.others("e"))
    assert bench.coordinator.history[1] == (2, bench.others("e"))
    assert bench.lost == {"e": f"no sign of life in {ADVERTISE}"}


def test_what_a_lost_site_is_told() -> None:
    bench = five()
    bench.until(SHARE)
    player = bench.players["c"]
    instruction = player.ask()
    assert isinstance(instruction, ShareKeys)
    bench.coordinator.withdraw("c", instruction.session, "budget")
    assert player.turn() == Wait("the next round: this site withdrew (budget) in ShareKeys")
    with pytest.raises(StaleSession, match="that session has moved on"):
        player.answer(instruction)


def test_who_has_answered_is_told_whom_the_round_waits_for() -> None:
    bench = three()
    bench.until(SHARE)
    bench.players["a"].turn()
    assert bench.players["a"].ask() == Wait("round 1, ShareKeys: b, c")


def test_with_three_sites_a_loss_voids_the_attempt_and_the_second_counts() -> None:
    bench = three()
    bench.until(MASK)
    _silent(bench, bench.players["b"])
    bench.players["a"].ask()
    started = [event for event in bench.events if isinstance(event, events.RoundStarted)]
    assert started == [events.RoundStarted(1, 2, 1, 0), events.RoundStarted(1, 2, 2, 0)]
    assert events.RoundAbandoned(1, 1, f"0 of 3 sites in {MASK}") in bench.events
    first = bench.archive.rounds()[0]
    # The two that were at work are not to blame.
    assert (first.state, first.contributors, first.lost) == (ABANDONED, (), {"b": f"no sign of life in {MASK}"})
    bench.one_round()
    np.testing.assert_array_equal(bench.coordinator.weights, bench.expected(toy.INITIAL, 1, "a", "b", "c"))
    assert [(row.round, row.attempt, row.state) for row in bench.archive.rounds()] == [
        (1, 1, "abandoned"), (1, 2, "closed"), (2, 1, "open"),
    ]  # fmt: skip


def test_whom_a_round_waits_for_in_vain_is_said_once() -> None:
    bench = five()
    bench.until(MASK)
    bench.wait(6, "a", "b", "c", "d")
    for _ in range(3):
        bench.players["a"].ask()
    waiting = [event for event in bench.events if isinstance(event, events.Waiting)]
    assert waiting[-1] == events.Waiting("round 1: no sign of life from e")
    assert waiting.count(waiting[-1]) == 1


def test_a_budget_that_ends_completes_the_study_where_a_quorum_is_out_of_reach() -> None:
    bench = Bench(private(rounds=2, reserve=2))
    bench.one_round()
    weights = bench.coordinator.weights
    joined = bench.players["a"].ask()
    assert isinstance(joined, Join)
    bench.coordinator.withdraw("a", joined.header.sid0(), "budget")
    assert bench.stands_at(StudyState.COMPLETE)
    assert events.RoundAbandoned(2, 1, "the privacy budget is used up at a") in bench.events
    answer = bench.players["b"].ask()
    assert isinstance(answer, Finished)
    assert (answer.history, answer.head.model_hash) == (((1, ("a", "b", "c")),), model_hash(weights))


def test_a_budget_that_ends_at_one_of_five_ends_that_site_only() -> None:
    bench = five()
    bench.gather()
    joined = bench.players["a"].ask()
    assert isinstance(joined, Join)
    bench.coordinator.withdraw("a", joined.header.sid0(), "budget")
    bench.one_round(*bench.others("a"))
    assert bench.coordinator.history == ((1, bench.others("a")),)
    assert bench.stands_at(StudyState.RUNNING)


def test_the_second_attempt_has_a_session_of_its_own_and_the_first_is_over() -> None:
    bench = three()
    bench.until(SHARE)
    player = bench.players["a"]
    old = player.header
    assert old is not None
    instruction = player.ask()
    assert isinstance(instruction, ShareKeys)
    _restarted(bench, bench.players["b"])
    again = player.ask()
    assert isinstance(again, Join)
    assert (again.header.round, again.header.attempt, again.header.sid0() == old.sid0()) == (1, 2, False)
    with pytest.raises(StaleSession, match="that session has moved on"):
        player.answer(instruction)


def test_no_round_twice_void_ends_a_study_without_privacy_but_six_void_attempts_pause_it() -> None:
    bench = three(rounds=1)
    for _ in range(6):
        assert not bench.stands_at(StudyState.PAUSED)
        bench.until(SHARE)
        _restarted(bench, bench.players["b"])
    assert bench.stands_at(StudyState.PAUSED)
    assert bench.coordinator.reason == "fewer than 3 sites could finish round 3"
    assert bench.players["a"].ask() == Paused("fewer than 3 sites could finish round 3")
    assert [(row.round, row.attempt) for row in bench.archive.rounds()] == [
        (number, attempt) for number in (1, 2, 3) for attempt in (1, 2)
    ]  # fmt: skip
    np.testing.assert_array_equal(bench.coordinator.weights, toy.INITIAL)


def test_too_few_to_begin_a_round_pauses_the_study_at_the_deadline() -> None:
    bench = three()
    bench.one_round()
    for _ in range(4):
        bench.wait(4.9, "a", "b")
        for site in ("a", "b"):
            assert not isinstance(bench.players[site].turn(), Paused)
    bench.wait(1, "a", "b")
    assert bench.players["a"].ask() == Paused("fewer than 3 sites could finish round 2")
    assert bench.lost["c"] == f"no sign of life in {ADVERTISE}"
    assert bench.stands_at(StudyState.PAUSED)


def test_a_site_that_comes_before_the_deadline_is_in_time() -> None:
    bench = three()
    bench.one_round()
    bench.wait(19, "a", "b")
    bench.one_round()
    assert bench.lost == {}


def test_a_paused_study_goes_on_where_it_stood() -> None:
    bench = three(rounds=3)
    bench.one_round()
    bench.until(MASK)
    bench.coordinator.pause("the server was stopped")
    weights = bench.coordinator.weights
    assert bench.events[-1] == events.RoundAbandoned(2, 1, "the server was stopped")
    bench.start()
    np.testing.assert_array_equal(bench.coordinator.weights, weights)
    assert bench.coordinator.history == ((1, ("a", "b", "c")),)
    assert bench.stands_at(StudyState.RUNNING)
    bench.one_round()
    assert [(row.round, row.attempt, row.state) for row in bench.archive.rounds()] == [
        (1, 1, "closed"), (2, 1, "abandoned"), (2, 2, "closed"), (3, 1, "open"),
    ]  # fmt: skip
    np.testing.assert_array_equal(bench.coordinator.weights, bench.expected(weights, 2, "a", "b", "c"))


def test_a_server_that_died_in_an_attempt_never_takes_it_up_again() -> None:
    bench = three(rounds=1)
    for following in ((1, 2), (2, 1)):
        bench.until(MASK)
        bench.start()
        row = bench.archive.rounds()[-1]
        assert (row.state, row.lost, row.ended_at) == ("abandoned", {"*": "server stopped"}, bench.clock())
        for player in bench.players.values():
            instruction = player.ask()
            assert isinstance(instruction, Join)
            assert (instruction.header.round, instruction.header.attempt) == following
    bench.one_round()
    assert bench.coordinator.history == ((2, ("a", "b", "c")),)


def test_once_shares_were_asked_for_a_round_has_no_second_attempt() -> None:
    bench = three(rounds=1)
    bench.until(UNMASK)
    assert bench.archive.rounds()[-1].state == "unmasking"
    bench.start()
    assert bench.archive.rounds()[-1].state == "void"
    bench.until(UNMASK)
    for site in ("a", "b"):
        _restarted(bench, bench.players[site])
    assert [(row.round, row.attempt, row.state) for row in bench.archive.rounds()] == [
        (1, 1, "void"),
        (2, 1, "void"),
        (3, 1, "open"),
    ]
    bench.one_round()
    assert bench.coordinator.history == ((3, ("a", "b", "c")),)


def test_a_study_that_ended_on_a_budget_has_ended_for_good() -> None:
    bench = Bench(private(rounds=2, reserve=2))
    bench.one_round()
    joined = bench.players["a"].ask()
    assert isinstance(joined, Join)
    bench.coordinator.withdraw("a", joined.header.sid0(), "budget")
    bench.start()
    assert bench.stands_at(StudyState.COMPLETE)
    assert isinstance(bench.players["b"].ask(), Finished)


def test_a_disk_that_fails_pauses_the_study_before_any_site_hears_of_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = three()
    bench.until(UNMASK)

    def full(*_: object) -> None:
        raise StorageError("no room is left on the disk", where="rounds")

    monkeypatch.setattr(bench.archive, "save_model", full)
    for site in bench.players:
        bench.players[site].turn()
    assert bench.stands_at(StudyState.PAUSED)
    assert not any(row.state == "closed" for row in bench.archive.rounds())
    np.testing.assert_array_equal(bench.coordinator.weights, toy.INITIAL)
    assert bench.players["a"].ask() == Paused("rounds: no room is left on the disk")
    monkeypatch.undo()
    bench.start()
    bench.one_round()
    assert bench.coordinator.history == ((2, ("a", "b", "c")),)


def test_who_holds_the_final_model_is_remembered() -> None:
    bench = three(rounds=1)
    bench.one_round()
    final = model_hash(bench.coordinator.weights)
    with pytest.raises(StaleSession, match="that is not the study's final model"):
        bench.coordinator.holds("b", model_hash(toy.INITIAL))
    for site in ("a", "a"):
        bench.coordinator.holds(site, final)
    assert bench.coordinator.without_model() == ("b", "c")
    bench.start()
    assert bench.coordinator.without_model() == ("b", "c")


def test_a_complete_study_stays_complete() -> None:
    bench = three(rounds=1)
    bench.one_round()
    weights = bench.coordinator.weights
    bench.coordinator.pause("too late to pause")
    bench.start()
    assert bench.stands_at(StudyState.COMPLETE)
    np.testing.assert_array_equal(bench.coordinator.weights, weights)
    assert isinstance(bench.players["a"].ask(), Finished)


def test_a_private_study_ends_when_its_noise_is_used_up() -> None:
    bench = Bench(private(rounds=1, reserve=1))
    for number, attempt in ((1, 1), (1, 2), (2, 1), (2, 2)):
        assert bench.stands_at(StudyState.GATHERING, StudyState.RUNNING)
        bench.until(SHARE)
        assert bench.archive.rounds()[-1].round == number
        assert bench.archive.rounds()[-1].attempt == attempt
        _restarted(bench, bench.players["b"])
    assert bench.stands_at(StudyState.PAUSED)
    answer = bench.players["a"].ask()
    assert answer == Paused("no round could be closed within the privacy budget")
    bench.start()
    assert bench.stands_at(StudyState.PAUSED)


def test_a_reserve_round_makes_up_for_a_void_one() -> None:
    bench = Bench(private(rounds=1, reserve=1))
    for _ in range(2):
        bench.until(SHARE)
        _restarted(bench, bench.players["b"])
    bench.one_round()
    assert bench.coordinator.history == ((2, ("a", "b", "c")),)
    assert bench.stands_at(StudyState.COMPLETE)


def test_only_the_newest_model_and_sum_are_given_out() -> None:
    bench = three()
    first = model_hash(toy.INITIAL)
    np.testing.assert_array_equal(bench.coordinator.model(first), toy.INITIAL)
    with pytest.raises(StaleSession, match="no longer has the sum of that round"):
        bench.coordinator.published(0)
    bench.one_round()
    with pytest.raises(StaleSession, match="the server no longer has that model"):
        bench.coordinator.model(first)
    published = bench.coordinator.published(1)
    assert (published.round, published.contributors, published.total.dtype.name) == (1, ("a", "b", "c"), "uint32")
    with pytest.raises(StaleSession, match="no longer has the sum of that round"):
        bench.coordinator.published(2)


def test_nobody_speaks_in_the_name_of_another() -> None:
    bench = three()
    bench.until(SHARE)
    player, coordinator = bench.players["a"], bench.coordinator
    instruction = player.ask()
    assert isinstance(instruction, ShareKeys)
    keys = player.keys
    assert isinstance(keys, Advertised)
    envelopes = keys.share_keys(instruction.advertisements, player.draw).message
    with pytest.raises(SiteFault, match="site b at ShareKeys: a message of another site"):
        coordinator.share_keys("b", instruction.session, envelopes)
    with pytest.raises(StaleSession):
        coordinator.advertise("a", instruction.session, instruction.advertisements[0])
    with pytest.raises(StaleSession):
        coordinator.share_keys("a", bytes(32), envelopes)
    bench = three()
    bench.gather()
    joined = bench.players["a"].ask()
    assert isinstance(joined, Join)
    for message in (None, instruction.advertisements[1]):
        with pytest.raises(SiteFault, match="the advertisement is missing or another site's"):
            bench.coordinator.advertise("a", joined.header.sid0(), message)


def test_signatures_and_shares_are_taken_from_their_site_only_and_in_their_phase_only() -> None:
    bench = five()
    bench.until(CONFIRM)
    player, coordinator = bench.players["a"], bench.coordinator
    asked, keys = player.ask(), player.keys
    assert isinstance(asked, Confirm)
    assert isinstance(keys, Masked)
    assert asked.contributors == FIVE
    signed = keys.confirm(asked.contributors)
    with pytest.raises(SiteFault, match="site b at ConsistencyCheck: a message of another site"):
        coordinator.confirm("b", asked.session, signed.message)
    with pytest.raises(SiteFault, match=r"site a at ConsistencyCheck: .* does not verify"):
        coordinator.confirm("a", asked.session, Consistency("a", bytes(64)))
    player.keys = signed
    coordinator.confirm("a", asked.session, signed.message)
    bench.until(UNMASK, *bench.others("a"))
    unmask = player.ask()
    assert isinstance(unmask, Unmask)
    assert unmask.signatures["a"] == signed.message.signature
    shares = signed.unmask(unmask.signatures).message
    with pytest.raises(SiteFault, match="site b at Unmasking: a message of another site"):
        coordinator.unmask("b", asked.session, shares)
    with pytest.raises(StaleSession):
        coordinator.confirm("a", asked.session, signed.message)
    coordinator.unmask("a", asked.session, shares)
    bench.one_round(*bench.others("a"))
    np.testing.assert_array_equal(bench.coordinator.weights, bench.expected(toy.INITIAL, 1, *FIVE))


def test_in_plain_mode_there_is_nothing_to_sign_or_to_unmask() -> None:
    bench = five("plain")
    bench.until(MASK)
    session = bench.players["a"].ask()
    assert isinstance(session, Submit)
    with pytest.raises(StaleSession):
        bench.coordinator.confirm("a", session.session, Consistency("a", bytes(64)))
    with pytest.raises(StaleSession):
        bench.coordinator.unmask("a", session.session, Shares("a", {}, {}, bytes(64)))


def test_signers_below_the_threshold_leave_a_second_attempt_and_as_many_are_enough() -> None:
    bench = five()
    bench.until(CONFIRM)
    for site in ("d", "e"):
        _restarted(bench, bench.players[site])
    assert bench.archive.rounds()[0].state == ABANDONED
    bench.until(UNMASK)
    # Nobody is asked for shares who has not signed; t of those who have are enough.
    _restarted(bench, bench.players["e"])
    bench.one_round(*bench.others("e"))
    assert bench.coordinator.history == ((1, FIVE),)
    assert [(row.round, row.attempt, row.state) for row in bench.archive.rounds()][:2] == [
        (1, 1, "abandoned"), (1, 2, "closed"),
    ]  # fmt: skip


def test_of_three_contributors_two_signatures_are_enough() -> None:
    bench = three()
    bench.until(CONFIRM)
    _restarted(bench, bench.players["c"])
    bench.one_round("a", "b")
    assert bench.coordinator.history == ((1, ("a", "b", "c")),)
    np.testing.assert_array_equal(bench.coordinator.weights, bench.expected(toy.INITIAL, 1, "a", "b", "c"))


def test_who_has_not_signed_is_not_asked_for_shares() -> None:
    bench = five()
    bench.until(CONFIRM)
    bench.wait(6, *bench.others("e"))
    bench.until(UNMASK, *bench.others("e"))
    asked = bench.players["a"].ask()
    assert isinstance(asked, Unmask)
    assert tuple(asked.signatures) == bench.others("e")
    assert isinstance(bench.players["e"].ask(), Wait)
    bench.one_round(*bench.others("e"))
    assert bench.coordinator.history == ((1, FIVE),)


def test_an_upload_in_another_name_is_refused_and_the_same_one_again_is_not() -> None:
    bench = five("plain")
    bench.until(MASK)
    player = bench.players["a"]
    instruction = player.ask()
    assert isinstance(instruction, Submit)
    assert player.header is not None
    vector = player.contribution(1)
    message = contribute(player.header, player.identity, instruction.sharers, vector)
    with pytest.raises(SiteFault, match="site b at MaskedInputCollection: an upload in another site's name"):
        bench.coordinator.upload("b", instruction.session, message, vector)
    other = vector.copy()
    other[0] += 1
    with pytest.raises(SiteFault, match="site a at MaskedInputCollection: the vector does not fit its digest"):
        bench.coordinator.upload("a", instruction.session, message, other)
    for _ in range(2):
        bench.coordinator.upload("a", instruction.session, message, vector)
    bench.one_round()
    np.testing.assert_array_equal(bench.coordinator.weights, bench.expected(toy.INITIAL, 1, *FIVE))
    assert bench.archive.rounds()[0].bytes_received == 5 * vector.nbytes


def test_it_may_stop_once_every_site_that_is_there_holds_the_model() -> None:
    bench = three(rounds=1)
    bench.one_round()
    final = model_hash(bench.coordinator.weights)
    for site in ("a", "b"):
        bench.players[site].ask()
        assert not bench.coordinator.all_told()
        bench.coordinator.holds(site, final)
    assert not bench.coordinator.all_told()
    bench.wait(6, "a", "b")
    assert bench.coordinator.all_told()


def test_a_pause_is_told_once() -> None:
    bench = three()
    bench.one_round()
    bench.coordinator.pause("lunch")
    for player in bench.players.values():
        assert not bench.coordinator.all_told()
        assert player.ask() == Paused("lunch")
    assert bench.coordinator.all_told()


def test_a_held_poll_is_answered_as_soon_as_something_happens() -> None:
    bench = three()
    answers: list[object] = []
    bench.clock.seconds = 0.0
    held = threading.Thread(target=lambda: answers.append(bench.coordinator.poll("a", None, 30.0)))
    held.start()
    bench.players["b"].ask()
    bench.players["c"].ask()
    bench.coordinator.poll("a", None, 0)
    held.join(10)
    assert isinstance(answers[0], Join)


def test_waiting_lets_time_act_on_the_study() -> None:
    bench = five()
    bench.until(MASK)
    for site in bench.others("e"):
        bench.players[site].turn()
    bench.wait(6, *bench.others("e"))
    assert bench.coordinator.wait(0.0) is StudyState.RUNNING
    assert bench.phase == CONFIRM
    assert bench.lost == {"e": f"no sign of life in {MASK}"}
