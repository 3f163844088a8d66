from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import Published
from fedseg.secagg.signing import sign
from fedseg.secagg.state import Joined
from fedseg.secagg.thresholds import Thresholds
from tests.runtime.machine import (
    ME,
    STEPS,
    Machine,
    PowerCut,
    Round,
    audited,
    before,
    reach,
    whole,
)
from tests.secagg.helpers import NAMES, inputs_of, key, session

# What is out of order releases nothing.


@pytest.mark.parametrize(
    ("stands", "asked"),
    [(stands, asked) for i, stands in enumerate(STEPS) for j, asked in enumerate(STEPS) if j not in (i, i + 1)],
)
def test_a_step_that_is_neither_the_last_nor_the_next_releases_nothing(stands: str, asked: str) -> None:
    header = session(5)
    complete = whole(Machine(header), header)
    site, played = Machine(header), Round(header)
    reach(stands, site, played)
    state, log = site.memory.session(), list(site.log)
    with pytest.raises(ProtocolError, match="gone past" if asked == "join" else "a step out of order"):
        complete.ask(site.at_work, asked)
    assert (site.memory.session(), site.log) == (state, log)


@pytest.mark.parametrize("asked", STEPS[1:])
def test_a_step_of_another_session_or_before_any_releases_nothing(asked: str) -> None:
    header, second = session(5), session(5, attempt=2)
    complete = whole(Machine(second), second)
    site, played = Machine(header), Round(header)
    with pytest.raises(ProtocolError, match="a step out of order"):
        complete.ask(site.at_work, asked)
    before(asked, site, played)
    log = list(site.log)
    with pytest.raises(ProtocolError, match="a step out of order"):
        complete.ask(site.at_work, asked)
    assert site.log == log


def test_a_session_of_the_past_is_not_joined() -> None:
    site = Machine(session(5))
    site.at_work.join(session(5, round=4, attempt=2))
    log = list(site.log)
    for offered in (session(5, round=4, attempt=1), session(5, round=3, attempt=2)):
        assert not site.at_work.may_join(offered)
        with pytest.raises(ProtocolError, match=f"this site has gone past round {offered.round}"):
            site.at_work.join(offered)
    assert site.log == log
    assert site.at_work.session == session(5, round=4, attempt=2).sid0()


# A used model.


def again(site: Machine, *, few: bool, number: int = 5, **more: Any) -> Round:
    """Another round over the same model, up to the signature."""
    played = Round(session(5, round=number, **more))
    before("confirm", site, played)
    played.ask(site.at_work, "confirm", few=few)
    return played


def test_the_same_contributors_may_sum_over_a_used_model_again_and_it_is_logged(tmp_path: Path) -> None:
    site = Machine(session(5))
    whole(site, session(5))
    site.restart()
    again(site, few=False)
    (reused,) = site.of("reused")
    everybody = list(session(5).sites)
    assert reused == {
        "model": session(5).model_hash.hex(), "round": 5, "earlier_round": 4, "u3": everybody, "earlier_u3": everybody,
    }  # fmt: skip
    assert site.kinds[-2:] == ["reused", "confirmed"]
    assert audited(site, tmp_path / "log") == []


@pytest.mark.parametrize("earlier", STEPS[3:])
def test_other_contributors_may_not(earlier: str) -> None:
    site = Machine(session(5))
    reach(earlier, site, Round(session(5)))
    site.restart()
    log = len(site.log)
    with pytest.raises(ProtocolError) as refused:
        again(site, few=True)
    assert str(refused.value) == (
        "round 5 would be a second sum over the model of round 4, of other contributors "
        "(two such sums can give an update away; a policy with allow_reused_models: true accepts it)"
    )
    assert site.kinds[log:] == ["aborted", "session", "masked"]


def test_other_contributors_may_where_the_policy_says_so_and_it_is_logged(tmp_path: Path) -> None:
    site = Machine(session(5), may_reuse=True)
    whole(site, session(5))
    again(site, few=True)
    (reused,) = site.of("reused")
    assert (reused["u3"], reused["earlier_u3"]) == (list(NAMES[:4]), list(NAMES[:5]))
    assert audited(site, tmp_path / "log") == []


def test_a_third_sum_is_held_against_each_of_the_two_before(tmp_path: Path) -> None:
    site = Machine(session(5), may_reuse=True)
    whole(site, session(5))
    again(site, few=True)
    again(site, few=False, number=6)
    assert [(body["round"], body["earlier_round"]) for body in site.of("reused")] == [(5, 4), (6, 4), (6, 5)]
    assert audited(site, tmp_path / "log") == []
    # Where it is no longer allowed, the same as the last is not the same as all.
    strict = Machine(session(5), memory=site.memory, log=site.log)
    with pytest.raises(ProtocolError, match="round 7 would be a second sum over the model of round 5"):
        again(strict, few=False, number=7)


def test_a_power_cut_beside_the_record_of_a_reuse_leaves_one_record_and_one_signature(tmp_path: Path) -> None:
    for cut in range(3):
        for reached in (False, True):
            site, played = Machine(session(5)), Round(session(5, round=5))
            whole(site, session(5))
            before("confirm", site, played)
            site.cuts = [(cut, reached)]
            with pytest.raises(PowerCut):
                played.ask(site.at_work, "confirm")
            site.restart()
            played.ask(site.at_work, "confirm")
            assert site.kinds[-2:] == ["reused", "confirmed"]
            assert (site.kinds.count("reused"), site.kinds.count("confirmed")) == (1, 2)
            assert audited(site, tmp_path / f"{cut}{reached}") == []


def test_another_attempt_at_the_round_is_no_second_use(tmp_path: Path) -> None:
    site = Machine(session(5))
    reach("confirm", site, Round(session(5)))
    again(site, few=True, number=4, attempt=2)
    assert site.of("reused") == []
    assert len(site.of("confirmed")) == 2
    assert audited(site, tmp_path / "log") == []


def test_another_model_is_no_second_use() -> None:
    site = Machine(session(5))
    whole(site, session(5))
    again(site, few=True, model_hash=bytes(32))
    assert site.of("reused") == []


def test_a_sum_that_this_site_never_signed_for_uses_nothing() -> None:
    site = Machine(session(5))
    reach("submit", site, Round(session(5)))
    again(site, few=True)
    assert site.of("reused") == []


# What this site knows of published sums.


def published(round_number: int, sid: bytes, contributors: Sequence[str]) -> Published:
    return Published(round_number, tuple(contributors), np.zeros(1, np.uint32), sid, "f" * 64)


def test_a_sum_of_others_than_it_signed_for_is_denied_even_after_the_end() -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    reach("confirm", site, played)
    sid = played.server.sid
    moves: list[Callable[[], None]] = [lambda: site.at_work.end("it left"), site.restart]
    for move in (lambda: None, *moves):
        move()
        assert not site.at_work.said.denies(published(4, sid, NAMES[:5]))
        assert site.at_work.said.denies(published(4, sid, NAMES[:4]))
        # Another attempt at the round, of which this site has heard nothing.
        assert not site.at_work.said.denies(published(4, bytes(32), NAMES[1:5]))


def test_once_step_5_was_answered_another_attempt_of_the_round_is_denied() -> None:
    site = Machine(session(5))
    whole(site, session(5))
    site.restart()
    assert site.at_work.said.denies(published(4, bytes(32), NAMES[1:5]))
    assert not site.at_work.said.denies(published(5, bytes(32), NAMES[1:5]))


def test_it_knows_where_a_round_that_it_was_in_started() -> None:
    site = Machine(session(5))
    assert site.at_work.said.base_of(4) is None
    site.at_work.join(session(5))
    site.restart()
    assert site.at_work.said.base_of(4) == session(5).model_hash.hex()
    assert site.at_work.said.base_of(5) is None


# Plain mode.


def test_in_plain_mode_the_same_input_is_sent_again_and_no_other(tmp_path: Path) -> None:
    header = session(3, thresholds=Thresholds.plain(3, 2))
    site, x = Machine(header), inputs_of(header)[ME]
    assert site.at_work.join(header) is None
    assert isinstance(site.state, Joined)
    assert site.at_work.join(header) is None
    sent = set()
    for _ in range(2):
        site.restart()
        message, vector = site.at_work.submit(header.sid0(), header.sites, {}, lambda: x)
        np.testing.assert_array_equal(vector, x)
        message.verify(header.sid0(), site.identity.roster)
        sent.add(message.to_bytes())
    assert len(sent) == 1
    assert site.kinds == ["session", "masked"]
    for _ in range(2):
        with pytest.raises(ProtocolError, match="this site has said something else in this session"):
            site.at_work.submit(header.sid0(), header.sites[:2], {}, lambda: x)
        site.restart()
    assert audited(site, tmp_path / "log") == []


def test_a_signature_of_another_purpose_is_none() -> None:
    header = session(5)
    site, played = Machine(header), Round(header)
    before("unmask", site, played)
    forged = sign(key(NAMES[1]), "MaskedInputCollection", played.server.sid, NAMES[1], b"")
    with pytest.raises(ProtocolError, match=f"site {NAMES[1]} at ConsistencyCheck"):
        site.at_work.unmask(header.sid0(), {**played.signatures, NAMES[1]: forged})
    assert "unmask" not in site.kinds
