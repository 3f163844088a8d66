from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import ProtocolError, StorageError
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.participation import Participation
from fedseg.secagg.messages import Advertisement, Consistency, MaskedInput, Shares
from fedseg.secagg.roster import Identity
from fedseg.secagg.site import Signed
from fedseg.secagg.state import Ended
from fedseg.secagg.thresholds import Thresholds
from tests.runtime.machine import (
    LOGGED,
    ME,
    STATES,
    STEPS,
    WRITES,
    Machine,
    PowerCut,
    Round,
    advance,
    audited,
    before,
    bytes_of,
    reach,
    secrets_of,
    whole,
)
from tests.secagg.helpers import NAMES, entropy, identity, key, ring_sum, roster, session

# Restarts.


@pytest.mark.parametrize("step", STEPS)
def test_a_restart_in_any_state_sends_the_very_same_bytes(step: str) -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    first = bytes_of(reach(step, site, played))
    assert isinstance(site.state, STATES[step])
    log, kept = list(site.log), site.memory.session()
    for _ in range(2):
        site.restart()
        assert bytes_of(played.ask(site.at_work, step)) == first
    assert bytes_of(played.ask(site.at_work, step)) == first
    # Nothing was drawn, masked, or written down a second time.
    assert (site.log, site.memory.session()) == (log, kept)
    assert next(played.asked) == int(step in STEPS[2:])


@pytest.mark.parametrize("step", STEPS[1:])
def test_whoever_asks_again_for_something_else_gets_what_was_sent_before(step: str) -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    first = bytes_of(reach(step, site, played))
    assert bytes_of(played.ask(site.at_work, step, few=True)) == first
    site.restart()
    assert bytes_of(played.ask(site.at_work, step, few=True)) == first


def test_a_whole_round_is_so_many_writes() -> None:
    site = Machine(session(3), cuts=[(sum(WRITES.values()), False)])
    played = whole(site, session(3))
    site.at_work.end(None)
    np.testing.assert_array_equal(played.total, ring_sum(list(played.inputs.values())))
    assert site.cuts == [(0, False)]
    assert site.kinds == LOGGED


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("first", range(sum(WRITES.values())))
def test_a_power_cut_at_any_write_and_another_after_it_change_nothing(
    first: int, reached: bool, tmp_path: Path
) -> None:
    header = session(3)
    for second in range(5):
        site, played = Machine(header, cuts=[(first, reached), (second, reached)]), Round(header)
        for step in STEPS:
            asked = partial(played.ask, step=step)
            answer = site.insist(asked)
            assert bytes_of(site.insist(asked)) == bytes_of(answer)
            played.take(step, answer)
        site.insist(lambda at_work: at_work.end(None))
        np.testing.assert_array_equal(played.total, ring_sum(list(played.inputs.values())))
        assert site.kinds == LOGGED
        assert isinstance(site.state, Ended)
        assert audited(site, tmp_path / str(second)) == []


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize(("step", "cut"), [(step, cut) for step in STEPS[1:] for cut in range(WRITES[step])])
def test_after_a_power_cut_a_lying_server_gets_one_answer_at_most(
    step: str, cut: int, reached: bool, tmp_path: Path
) -> None:
    header = session(5)
    for few_first in (True, False):
        site, played = Machine(header), Round(header)
        before(step, site, played)
        site.cuts.append((cut, reached))
        with pytest.raises(PowerCut):
            played.ask(site.at_work, step, few=few_first)
        site.restart()
        told = {bytes_of(played.ask(site.at_work, step, few=few)) for few in (not few_first, few_first, not few_first)}
        assert len(told) == 1
        assert len(site.kinds) == len(set(site.kinds))
        assert audited(site, tmp_path / str(few_first)) == []


def test_what_leaves_is_in_the_log_before_it_does(tmp_path: Path) -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    for step in STEPS:
        answer = played.ask(site.at_work, step)
        logged = dict(site.log)
        match answer:
            case Advertisement():
                assert logged["session"] == {"session": played.session.hex(), "header": header.to_bytes().hex()}
            case (MaskedInput() as message, _):
                assert logged["masked"]["u2"] == list(header.sites)
                assert (logged["masked"]["digest"], logged["masked"]["signature"]) == (
                    message.digest.hex(), message.signature.hex(),
                )  # fmt: skip
            case Consistency():
                assert logged["confirmed"]["u3"] == list(header.sites)
                assert logged["confirmed"]["signature"] == answer.signature.hex()
            case Shares():
                assert set(logged["unmask"]["signatures"]) == set(header.sites)
        played.take(step, answer)
    assert audited(site, tmp_path / "log") == []


@pytest.mark.parametrize(("step", "writes"), [("submit", 2), ("confirm", 1)])
def test_a_message_that_cannot_be_logged_does_not_leave_not_even_when_asked_again(step: str, writes: int) -> None:
    header = session(3)
    site, played = Machine(header), Round(header)
    before(step, site, played)
    whole_disk = [(0, False)] * 3
    site.cuts = [(writes, False), *whole_disk]
    for _ in range(3):
        with pytest.raises(PowerCut):
            played.ask(site.at_work, step)
    assert site.kinds == LOGGED[: LOGGED.index({"submit": "masked", "confirm": "confirmed"}[step])]
    site.cuts = []
    played.ask(site.at_work, step)
    assert site.kinds[-1] == {"submit": "masked", "confirm": "confirmed"}[step]


def test_a_masked_update_that_is_gone_is_not_made_again() -> None:
    header = session(3)
    site, played = Machine(header), Round(header)
    reach("submit", site, played)
    site.memory.save_masked(bytes(32), np.zeros(header.length, np.uint32))
    site.restart()
    with pytest.raises(StorageError, match="the masked update of this session is gone from this site's folder"):
        played.ask(site.at_work, "submit")
    assert next(played.asked) == 1


def test_a_state_of_another_site_is_not_taken_up() -> None:
    header = session(3)
    site, played = Machine(header), Round(header)
    reach("submit", site, played)
    other = identity(NAMES[1], header)
    with pytest.raises(ProtocolError, match="this state of a session is another site's"):
        Participation(other, site.memory, MemoryEvidence(), entropy=entropy(), may_reuse=False)


# The end of a session.


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("why", [None, "enough"])
def test_no_secret_outlives_the_end(step: str, why: str | None) -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    secrets = advance(site, played, step)
    site.at_work.end(why)
    site.at_work.end("a second time")
    kept = site.memory.session()
    assert kept is not None
    assert not any(secret in kept for secret in secrets)
    assert site.state == Ended(header.round, header.attempt, step == "unmask", header.sid0(), header.roster)
    assert site.at_work.session is None
    assert [body["why"] for body in site.of("aborted")] == [why] * (why is not None)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_second_attempt_erases_the_keys_of_the_first_before_it_makes_its_own(step: str, tmp_path: Path) -> None:
    header, second = session(5), session(5, attempt=2)
    site, played = Machine(header), Round(header)
    secrets = advance(site, played, step)
    site.story.clear()
    advertised = site.at_work.join(second)
    assert site.story == ["Ended", "random", "random", "random", "Advertised"]
    assert advertised is not None
    assert advertised.mask_key not in {each.mask_key for each in played.u1}
    kept = site.memory.session()
    assert kept is not None
    assert not any(secret in kept for secret in secrets)
    with pytest.raises(ProtocolError, match="gone past" if step == "join" else "out of order"):
        played.ask(site.at_work, step)
    assert audited(site, tmp_path / "log") == []


def test_who_has_answered_step_5_joins_no_other_attempt_at_the_round() -> None:
    header, second, later = session(5), session(5, attempt=2), session(5, round=5)
    site, played = Machine(header), Round(header)
    reach("unmask", site, played)
    moves: list[Callable[[], None]] = [site.restart, lambda: site.at_work.end("the server stopped"), site.restart]
    for move in (lambda: None, *moves):
        move()
        assert not site.at_work.may_join(second)
        with pytest.raises(ProtocolError, match="this site has gone past round 4, attempt 2"):
            site.at_work.join(second)
        assert site.at_work.may_join(later)


@pytest.mark.parametrize("ends", [True, False])
def test_a_log_that_is_a_step_ahead_counts_as_answered(ends: bool, tmp_path: Path) -> None:
    header, second = session(5), session(5, attempt=2)
    site, played = Machine(header), Round(header)
    before("unmask", site, played)
    site.cuts = [(0, True)]
    with pytest.raises(PowerCut):
        played.ask(site.at_work, "unmask")
    site.restart()
    assert site.kinds == LOGGED
    assert isinstance(site.state, Signed)
    if ends:
        site.at_work.end("the server stopped")
        site.restart()
    assert not site.at_work.may_join(second)
    assert audited(site, tmp_path / "log") == []


@pytest.mark.parametrize("step", STEPS)
def test_a_session_that_was_over_by_the_log_is_over_after_a_power_cut(step: str, tmp_path: Path) -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    reach(step, site, played)
    site.cuts = [(0, True)]
    with pytest.raises(PowerCut):
        site.at_work.end("the operator stopped it")
    assert site.kinds[-1] == "aborted"
    site.restart()
    assert isinstance(site.state, Ended)
    with pytest.raises(ProtocolError, match="out of order" if step != "join" else "gone past round 4, attempt 1"):
        played.ask(site.at_work, step)
    assert site.kinds.count("aborted") == 1
    assert audited(site, tmp_path / "log") == []


def test_of_a_long_reason_the_log_keeps_the_beginning(tmp_path: Path) -> None:
    site = Machine(session(5))
    site.at_work.join(session(5))
    site.at_work.end("very " * 10_000)
    (body,) = site.of("aborted")
    assert body["why"].startswith("very very ")
    assert len(body["why"]) == 1000
    assert audited(site, tmp_path / "log") == []


def test_a_session_whose_sum_is_in_the_log_is_over_after_a_power_cut() -> None:
    header = session(3)
    site, played = Machine(header), Round(header)
    reach("confirm", site, played)
    site.log.append(("closed", {"session": site.of("confirmed")[0]["sid"], "round": header.round}))
    site.restart()
    assert isinstance(site.state, Ended)
    assert site.kinds[-1] == "closed"


@pytest.mark.parametrize("step", STEPS)
def test_a_session_of_another_roster_ends(step: str) -> None:
    header = session(3)
    site, played = Machine(header), Round(header)
    reach(step, site, played)
    secrets, log = set(secrets_of(site.state)), list(site.log)
    wider = roster(sites=header.sites, study=header.study, plan_hash=bytes(32))
    site.identity = Identity(ME, key(ME), wider)
    site.restart()
    assert site.at_work.header is None
    kept = site.memory.session()
    assert kept is not None
    assert not any(secret in kept for secret in secrets)
    assert site.state == Ended(header.round, header.attempt, step == "unmask", header.sid0(), header.roster)
    assert site.log == log
    with pytest.raises(ProtocolError, match="the session is not one of the roster that this site has confirmed"):
        site.at_work.join(session(3, round=9))


def test_a_plain_session_of_another_roster_ends_too() -> None:
    header = session(3, thresholds=Thresholds.plain(3, 2))
    site = Machine(header)
    site.at_work.join(header)
    site.identity = Identity(ME, key(ME), roster(sites=header.sites, plan_hash=bytes(32)))
    site.restart()
    assert site.at_work.header is None
    assert isinstance(site.state, Ended)


@pytest.mark.parametrize(
    ("step", "lost"),
    # The log of step 5 comes before its state: after a power cut the very same shares are released again.
    [("submit", True), ("submit", False), ("confirm", True), ("confirm", False), ("unmask", True)],
)
def test_a_state_that_was_set_back_or_lost_says_nothing_more_in_its_session(step: str, lost: bool) -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    before(step, site, played)
    older = None if lost else site.memory.session()
    assert bytes_of(played.ask(site.at_work, step))
    site.memory._session = older
    site.restart()
    assert site.at_work.header is None
    assert site.state is None or isinstance(site.state, Ended)
    with pytest.raises(ProtocolError, match="out of order"):
        played.ask(site.at_work, step)
    assert site.at_work.may_join(session(5, attempt=2)) is (step != "unmask")
    assert not site.at_work.may_join(header)
