"""Each lie told by itself, and what an honest site says to it; what a server gets for its pains."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedseg.errors import ProtocolError
from fedseg.secagg.messages import SessionHeader

from .adversary import Server
from .helpers import NAMES
from .lies import (
    HEADER_LIES,
    SIGNATURE_LIES,
    U1_LIES,
    U2_LIES,
    U3_LIES,
    advance,
    model,
    now,
    signatures_for,
    step,
    u1_for,
    u2_for,
    u3_for,
    world,
)


def midst(steps: int) -> Server:
    """Five sites, of which one helps the server; a first attempt was given up, the second is `steps` steps along."""
    server = world(5, 1, ["amiens"])
    for attempt, length in ((1, 3), (2, steps)):
        for name in server.sites:
            server.offer(name, server.header(1, attempt, model(0)))
        for _ in range(length):
            advance(server)
    assert not server.refusals
    return server


def answers(lie: str, steps: int, tell: Callable[[Server], None], expected: str) -> None:
    server = midst(steps)
    before = server.sites["brno"].disk.state
    tell(server)
    assert [expected in str(refusal) for refusal in server.refusals] == [True], (lie, server.refusals)
    assert server.sites["brno"].disk.state == before
    server.check()


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_lies_about_the_session(lie: str) -> None:
    def tell(server: Server) -> None:
        honest = server.header(2, 1, server.sites["brno"].model)
        server.offer("brno", HEADER_LIES[lie].of(server, "brno", honest), show_model=False)

    answers(lie, 0, tell, HEADER_LIES[lie].answer)


@pytest.mark.parametrize("lie", U1_LIES)
def test_lies_about_u1(lie: str) -> None:
    def tell(server: Server) -> None:
        server.send_u1("brno", now(server, "brno"), U1_LIES[lie].of(server, "brno", u1_for(server, "brno")))

    answers(lie, 0, tell, U1_LIES[lie].answer)


@pytest.mark.parametrize("lie", U2_LIES)
def test_lies_about_u2(lie: str) -> None:
    def tell(server: Server) -> None:
        server.send_u2("brno", now(server, "brno"), *U2_LIES[lie].of(server, "brno", u2_for(server, "brno")))

    answers(lie, 1, tell, U2_LIES[lie].answer)


@pytest.mark.parametrize("lie", U3_LIES)
def test_lies_about_u3(lie: str) -> None:
    def tell(server: Server) -> None:
        server.send_u3("brno", now(server, "brno"), U3_LIES[lie].of(server, "brno", u3_for(server, "brno")))

    answers(lie, 2, tell, U3_LIES[lie].answer)


@pytest.mark.parametrize("lie", SIGNATURE_LIES)
def test_lies_about_signatures(lie: str) -> None:
    def tell(server: Server) -> None:
        given = SIGNATURE_LIES[lie].of(server, "brno", signatures_for(server, "brno"))
        server.send_signatures("brno", now(server, "brno"), given)

    answers(lie, 3, tell, SIGNATURE_LIES[lie].answer)


def test_no_lie_no_refusal() -> None:
    server = midst(4)
    assert server.check() == [frozenset({"brno", "cluj", "dakar", "essen"})]


def test_a_header_with_a_threshold_of_one_cannot_be_read() -> None:
    honest = midst(0).header(2, 1, model(0)).to_bytes()
    n_c_t_m = honest[-6:]
    assert n_c_t_m == bytes([0, 1, 0, 4, 0, 3])
    for t in (1, 2, 3):
        with pytest.raises(ProtocolError, match=f"thresholds t = {t}, m = 3 are not those of 5 sites with collusion 1"):
            SessionHeader.from_bytes(honest[:-6] + bytes([0, 1, 0, t, 0, 3]))


def test_a_server_with_two_models_gets_no_share() -> None:
    """Each half signs keys for a session over its own model, and takes no key that was signed for the other."""
    server = world(5, 1, ["amiens"])
    for name in server.sites:
        server.offer(name, server.header(1, 1, model(int(name > "cluj"))))
    everything = [part.advertisement for part in server.parts.values()]
    for name in server.sites:
        server.send_u1(name, now(server, name), [*everything, *u1_for(server, name)[-1:]])
    assert not any(part.envelopes for part in server.parts.values())
    assert ["does not verify" in str(refusal) for refusal in server.refusals] == [True] * 4
    for name in server.sites:
        server.send_u1(name, now(server, name), u1_for(server, name))
    assert ["3 sites are fewer than 4" in str(refusal) for refusal in server.refusals[4:]] == [True] * 4


def test_a_site_opens_no_envelope_of_one_that_was_shown_other_advertisements() -> None:
    """`sid` is the hash of them all: a helper that shows each half another key splits the session in two."""
    server = midst(0)
    for name in server.sites:
        server.send_u1(name, now(server, name), u1_for(server, name, variant=int(name > "cluj")))
    assert all(part.envelopes for (_, sid0), part in server.parts.items() if sid0 == now(server, "brno"))
    advance(server)
    assert ["envelope failed to open" in str(refusal) for refusal in server.refusals] == [True] * 4


def test_a_server_with_two_lists_of_contributors_gets_too_few_signatures_on_either() -> None:
    server = midst(2)
    for name in server.sites:
        without = ["essen"] if name in ("brno", "cluj") else ["brno"]
        server.send_u3(name, now(server, name), u3_for(server, name, without))
    assert not server.refusals
    advance(server)
    assert ["3 signatures are fewer than 4" in str(refusal) for refusal in server.refusals] == [True] * 4
    assert server.check() == []


def test_a_server_that_shows_two_lists_of_sharers_gets_no_signature_it_could_add_up() -> None:
    server = midst(1)
    for name in server.sites:
        server.send_u2(name, now(server, name), *u2_for(server, name, ["essen"] if name in ("brno", "cluj") else []))
    for name in server.sites:
        server.send_u3(name, now(server, name), u3_for(server, name, ["essen"]) if name != "essen" else NAMES[:5])
    advance(server)
    assert all("are fewer than 4" in str(refusal) for refusal in server.refusals)
    assert len(server.refusals) == 4
    assert server.check() == []


def test_a_site_that_answered_step_5_joins_no_other_attempt() -> None:
    server = world(5, 1, ["amiens"])
    for name in server.sites:
        server.offer(name, server.header(1, 1, model(0)))
    for _ in range(4):
        advance(server, without=["essen"])
    for name, site in server.sites.items():
        site.restart()
        server.offer(name, server.header(1, 2, model(0)))
    gone = "this site has gone past round 1, attempt 2"
    assert [refusal.what for refusal in server.refusals] == [gone] * 3
    server.send_u1("essen", now(server, "essen"), u1_for(server, "essen"))
    assert "2 sites are fewer than 4" in str(server.refusals[-1])
    assert server.check() == [frozenset({"brno", "cluj", "dakar"})]


GIVEN_UP = True


@pytest.mark.parametrize(
    "sessions",
    [
        [(1, 1, "", False), (2, 1, "essen", False)],
        [(1, 1, "", False), (2, 1, "", GIVEN_UP), (2, 2, "essen", False)],
        [(1, 1, "", GIVEN_UP), (1, 2, "essen", False), (2, 1, "", False)],
    ],
)
def test_a_second_sum_over_a_used_model_needs_the_same_contributors(sessions: list[tuple[int, int, str, bool]]) -> None:
    """Of the sums that may have been unmasked, not of one that was only signed; whatever attempts came between."""
    server = world(5, 0)
    for round_number, attempt, lost, given_up in sessions:
        for name in server.sites:
            server.offer(name, server.header(round_number, attempt, model(0)))
        for _ in range(2):
            advance(server)
        advance(server, without=[lost])
        if not given_up:
            for name in server.sites.keys() - {lost}:
                if server.parts[name, now(server, name)].sets:
                    advance(server, silent=server.sites.keys() - {name})
    assert len(server.check()) == 1
    assert ["would be a second sum over the model of round 1" in str(each) for each in server.refusals[:4]] == [
        True
    ] * 4


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("writes", range(4))
def test_a_site_that_lost_its_power_sends_the_same_bytes_or_none(steps: int, writes: int) -> None:
    server = midst(steps)
    for lost in server.sites.values():
        lost.disk.writes_left = writes
    for _ in range(6):
        advance(server)
        for site in server.sites.values():
            site.restart()
    assert all(len(messages) == 1 for messages in server.sent.values())
    assert server.check() == [frozenset(server.sites)]


def test_with_more_helpers_than_the_plan_assumes_the_server_reads_a_single_update() -> None:
    """Outside the model, and the proof that `Server.check` finds what it looks for: t = 3 of n = 5, and two help."""
    server = world(5, 0, ["amiens", "brno"])
    for name in server.sites:
        server.offer(name, server.header(1, 1, model(0)))
    for _ in range(2):
        advance(server)
    step(server, "cluj", without=["dakar", "essen"])
    for name in ("dakar", "essen"):
        step(server, name, without=["cluj"])
    advance(server)
    assert not server.refusals
    assert any(server.knows_seed(part) and server.knows_key(part) for part in server.parts.values())
    assert frozenset({("cluj", now(server, "cluj"))}) in set(server.bared())
    with pytest.raises(AssertionError):
        server.check()
