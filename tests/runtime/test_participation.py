from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedseg.errors import ProtocolError, StorageError
from fedseg.federation.exchange import Published
from fedseg.runtime.evidence import MemoryEvidence, roster_entry
from fedseg.runtime.participation import Participation
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.roster import Identity
from fedseg.secagg.signing import sign
from fedseg.secagg.site import Advertised, Masked, Shared, Signed, Unmasked, advertise
from fedseg.secagg.state import Ended, Joined, State, load
from fedseg.secagg.thresholds import Thresholds
from tests.runtime.threads import contradictions
from tests.secagg.helpers import (
    NAMES,
    STUDY,
    Vector,
    entropy,
    identity,
    inputs_of,
    key,
    ring_sum,
    roster,
    roster_of,
    session,
)

ME = NAMES[0]
STEPS = ("join", "share_keys", "submit", "confirm", "unmask")
WRITES = {"join": 2, "share_keys": 1, "submit": 3, "confirm": 2, "unmask": 2, "end": 1}
STATES = {"join": Advertised, "share_keys": Shared, "submit": Masked, "confirm": Signed, "unmask": Unmasked}
LOGGED = ["session", "masked", "confirmed", "unmask"]


class PowerCut(Exception):
    """The machine stopped at a write."""


@dataclass
class Machine:
    """A site's disk and the process on it, which a power cut ends.

    Attributes:
        cuts: For each cut, how many writes go well before it, counted from the one before; and whether the write at
            which it comes has reached the disk.
        random: Draws of randomness, beside writes, in order.
    """

    roster_of: SessionHeader
    may_reuse: bool = False
    cuts: list[tuple[int, bool]] = field(default_factory=list)
    memory: SiteMemory = field(default_factory=SiteMemory)
    log: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity, self._draw = identity(ME, self.roster_of), entropy("me")
        self.restart()

    def restart(self) -> None:
        """A process begins, as often as a cut lets it."""
        while True:
            try:
                self.at_work = Participation(self.identity, self, self, entropy=self._random, may_reuse=self.may_reuse)
                return
            except PowerCut:
                pass

    def insist(self, call: Callable[[Participation], Any]) -> Any:
        """What the site answers, asked again after every cut."""
        while True:
            try:
                return call(self.at_work)
            except PowerCut:
                self.restart()

    @property
    def state(self) -> State | None:
        """What the disk says."""
        kept = self.memory.session()
        return None if kept is None else load(kept, self.identity)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [body for each, body in self.log if each == kind]

    # The ports.

    def session(self) -> bytes | None:
        return self.memory.session()

    def save_session(self, data: bytes) -> None:
        self._write(lambda: self.memory.save_session(data))
        self.story.append(type(load(data, self.identity)).__name__)

    def masked(self, session: bytes) -> Vector | None:
        return self.memory.masked(session)

    def save_masked(self, session: bytes, vector: Vector) -> None:
        self._write(lambda: self.memory.save_masked(session, vector.copy()))

    def entries(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return tuple(self.log)

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        self._write(lambda: self.log.append((kind, body)))

    def _random(self, size: int) -> bytes:
        self.story.append("random")
        return self._draw(size)

    def _write(self, write: Callable[[], None]) -> None:
        left, reached = self.cuts[0] if self.cuts else (1, True)
        if left > 0 or reached:
            write()
        if self.cuts:
            self.cuts[0] = (left - 1, reached)
        if left == 0:
            self.cuts.pop(0)
            raise PowerCut


class Round:
    """A session in which everybody but this site answers at once; `few` leave the last one out where that can be."""

    def __init__(self, header: SessionHeader) -> None:
        self.header, self.session, self.inputs = header, header.sid0(), inputs_of(header)
        self.asked = count()
        self.u1: list[Advertisement] = []
        self.server = SecureAggregator(header, roster_of(header))
        self.peers: dict[str, Any] = {
            site: advertise(header, identity(site, header), entropy((site, self.session))) for site in header.sites[1:]
        }

    def x(self) -> Vector:
        next(self.asked)
        return self.inputs[ME]

    def ask(self, site: Participation, step: str, *, few: bool = False) -> Any:
        """What the site answers to a step."""
        cut = -1 if few else None
        match step:
            case "join":
                return site.join(self.header)
            case "share_keys":
                return site.share_keys(self.session, self.u1[:cut])
            case "submit":
                u2 = self.u2[:cut]
                relayed = {peer: sealed for peer, sealed in self.envelopes.items() if peer in u2}
                return site.submit(self.session, u2, relayed, self.x)
            case "confirm":
                return site.confirm(self.session, self.u3[:cut])
            case _:
                kept = list(self.signatures)[:cut]
                return site.unmask(self.session, {peer: self.signatures[peer] for peer in kept})

    def take(self, step: str, answer: Any) -> None:
        """Hand the answer to the server, and the step to everybody else."""
        hands: dict[str, Callable[[Any], None]] = {
            "join": self._advertised, "share_keys": self._shared, "submit": self._masked, "confirm": self._signed,
            "unmask": self._unmasked,
        }  # fmt: skip
        hands[step](answer)

    def _advertised(self, mine: Advertisement) -> None:
        for message in (mine, *(peer.message for peer in self.peers.values())):
            self.server.advertise(message)
        self.u1 = list(self.server.close_advertise())

    def _shared(self, mine: Envelopes) -> None:
        self.peers = {site: peer.share_keys(self.u1, entropy(site)) for site, peer in self.peers.items()}
        for message in (mine, *(peer.message for peer in self.peers.values())):
            self.server.share(message)
        self.u2 = list(self.server.close_share())
        self.envelopes = self.server.envelopes_for(ME)

    def _masked(self, mine: tuple[MaskedInput, Vector]) -> None:
        self.server.mask(*mine)
        for site, peer in self.peers.items():
            self.peers[site], y = peer.mask(self.server.envelopes_for(site), self.u2, self.inputs[site])
            self.server.mask(self.peers[site].message, y)
        self.u3 = list(self.server.close_mask())

    def _signed(self, mine: Consistency) -> None:
        self.peers = {site: peer.confirm(self.u3) for site, peer in self.peers.items()}
        for message in (mine, *(peer.message for peer in self.peers.values())):
            self.server.consistency(message)
        self.signatures = dict(self.server.close_consistency())

    def _unmasked(self, mine: Shares) -> None:
        for message in (mine, *(peer.unmask(self.signatures).message for peer in self.peers.values())):
            self.server.shares(message)
        self.total = self.server.close_unmask()


def bytes_of(answer: Any) -> bytes:
    if isinstance(answer, tuple):
        message, y = answer
        return bytes(message.to_bytes()) + bytes(y.tobytes())
    written: bytes = answer.to_bytes()
    return written


def reach(step: str, site: Machine, played: Round) -> Any:
    """Play until this step is answered (not yet handed on); its answer."""
    for each in STEPS:
        answer = played.ask(site.at_work, each)
        if each == step:
            return answer
        played.take(each, answer)
    raise AssertionError(step)


def before(step: str, site: Machine, played: Round) -> None:
    """Play until this step can be asked."""
    for each in STEPS[: STEPS.index(step)]:
        played.take(each, played.ask(site.at_work, each))


def whole(site: Machine, header: SessionHeader) -> Round:
    """A whole round."""
    played = Round(header)
    played.take("unmask", reach("unmask", site, played))
    return played


def audited(site: Machine, folder: Path) -> list[str]:
    """What an audit finds wrong with the site's log."""
    log = MemoryEvidence()
    log.append("roster", roster_entry(site.identity.roster))
    for kind, body in site.log:
        log.append(kind, body)
    folder.mkdir()
    return contradictions(folder, STUDY, {ME: log})


def secrets_of(state: Any) -> Iterator[bytes]:
    """Every secret in a state."""
    if isinstance(state, Advertised | Shared):
        yield from (state.keys.envelope, state.keys.mask, state.keys.seed)
    if isinstance(state, Shared):
        yield from (state.own.seed_share.to_bytes()[1:], state.own.key_share.to_bytes()[1:])
    if isinstance(state, Masked | Signed):
        for held in state.held.values():
            yield from (held.seed_share.to_bytes()[1:], held.key_share.to_bytes()[1:])


def _played(site: Machine, played: Round, step: str) -> set[bytes]:
    """Play until this step is answered; every secret that the site has had on its disk."""
    secrets: set[bytes] = set()
    for each in STEPS[: STEPS.index(step) + 1]:
        answer = played.ask(site.at_work, each)
        secrets |= set(secrets_of(site.state))
        if each != step:
            played.take(each, answer)
    assert len(secrets) >= 3
    return secrets


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
    secrets = _played(site, played, step)
    site.at_work.end(why)
    site.at_work.end("a second time")
    kept = site.memory.session()
    assert kept is not None
    assert not any(secret in kept for secret in secrets)
    assert site.state == Ended(header.round, header.attempt, step == "unmask", header.sid0())
    assert site.at_work.session is None
    assert [body["why"] for body in site.of("aborted")] == [why] * (why is not None)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_second_attempt_erases_the_keys_of_the_first_before_it_makes_its_own(step: str, tmp_path: Path) -> None:
    header, second = session(5), session(5, attempt=2)
    site, played = Machine(header), Round(header)
    secrets = _played(site, played, step)
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
    assert site.state == Ended(header.round, header.attempt, step == "unmask", header.sid0())
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
        assert not site.at_work.denies(published(4, sid, NAMES[:5]))
        assert site.at_work.denies(published(4, sid, NAMES[:4]))
        # Another attempt at the round, of which this site has heard nothing.
        assert not site.at_work.denies(published(4, bytes(32), NAMES[1:5]))


def test_once_step_5_was_answered_another_attempt_of_the_round_is_denied() -> None:
    site = Machine(session(5))
    whole(site, session(5))
    site.restart()
    assert site.at_work.denies(published(4, bytes(32), NAMES[1:5]))
    assert not site.at_work.denies(published(5, bytes(32), NAMES[1:5]))


def test_it_knows_where_a_round_that_it_was_in_started() -> None:
    site = Machine(session(5))
    assert site.at_work.base_of(4) is None
    site.at_work.join(session(5))
    site.restart()
    assert site.at_work.base_of(4) == session(5).model_hash.hex()
    assert site.at_work.base_of(5) is None


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
        with pytest.raises(ProtocolError, match="the server asks for a second input to one session"):
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
