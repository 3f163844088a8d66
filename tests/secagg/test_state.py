"""States as bytes: what is read back goes on as if nothing had happened, and nothing else can be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Identity
from fedseg.secagg.site import Advertised, Masked, Shared, Signed, Unmasked
from fedseg.secagg.state import Ended, Joined, Live, State, dump, ended, load, may_join, session_of
from fedseg.secagg.thresholds import Thresholds

from .helpers import (
    after_advertise,
    after_confirm,
    after_mask,
    after_share,
    after_unmask,
    entropy,
    identity,
    inputs_of,
    key,
    roster,
    session,
)

FIVE = session(5)
LOST = ("dakar",)
INPUTS = inputs_of(FIVE)
PLAIN = session(5, thresholds=Thresholds.plain(5, 3))


def lives(site: str = "amiens", header: SessionHeader = FIVE) -> dict[str, Live]:
    """Every live state of one site, from runs that are the same to the bit."""
    return {
        "Advertised": after_advertise(header)[1][site],
        "Shared": after_share(header)[1][site],
        "Masked": after_mask(header, INPUTS, LOST)[1][site],
        "Signed": after_confirm(header, INPUTS, LOST)[1][site],
        "Unmasked": after_unmask(header, INPUTS, LOST)[1][site],
    }


LIVES = lives()
STATES: dict[str, State] = {**LIVES, "Joined": Joined(PLAIN), "Ended": Ended(4, 1, True, bytes(32), FIVE.roster)}


def go_on(state: State) -> list[bytes]:
    """All that the site says from here on, in the run that `lives` is of."""
    said: list[bytes] = []
    if isinstance(state, Advertised):
        state = state.share_keys(after_advertise(FIVE)[0].close_advertise(), entropy("amiens/share"))
        said.append(state.message.to_bytes())
    if isinstance(state, Shared):
        server = after_share(FIVE)[0]
        u2 = server.close_share()
        state, y = state.mask(server.envelopes_for("amiens"), u2, INPUTS["amiens"])
        said += [state.message.to_bytes(), y.tobytes()]
    if isinstance(state, Masked):
        state = state.confirm(after_mask(FIVE, INPUTS, LOST)[0].close_mask())
        said.append(state.message.to_bytes())
    if isinstance(state, Signed):
        state = state.unmask(after_confirm(FIVE, INPUTS, LOST)[0].close_consistency())
        said.append(state.message.to_bytes())
    return said


def test_the_names_of_the_states_are_those_of_their_types() -> None:
    assert {name: type(state).__name__ for name, state in STATES.items()} == {name: name for name in STATES}


@pytest.mark.parametrize("name", STATES)
def test_bytes_and_back(name: str) -> None:
    state = STATES[name]
    again = load(dump(state), identity("amiens", FIVE))
    assert type(again) is type(state)
    assert dump(again) == dump(state)
    assert session_of(again) == session_of(state)


@pytest.mark.parametrize("name", LIVES)
def test_what_is_read_back_sends_the_same_bytes_and_goes_on_identically(name: str) -> None:
    state = LIVES[name]
    again = load(dump(state), identity("amiens", FIVE))
    assert not isinstance(again, Ended | Joined)
    assert again.message.to_bytes() == state.message.to_bytes()
    assert (again.header, again.identity, again.site) == (FIVE, identity("amiens", FIVE), "amiens")
    expected = go_on(lives()[name])
    assert go_on(again) == expected
    assert len(expected) == {"Advertised": 5, "Shared": 4, "Masked": 2, "Signed": 1, "Unmasked": 0}[name]


def test_what_is_read_back_checks_as_before() -> None:
    """The roster, the lists and the signatures are held against what was written, not against what the server says."""
    advertised, shared, masked, signed = (load(dump(LIVES[name]), identity("amiens", FIVE)) for name in list(LIVES)[:4])
    assert isinstance(advertised, Advertised)
    with pytest.raises(ProtocolError, match="it left out amiens"):
        advertised.share_keys(after_advertise(FIVE)[0].close_advertise()[1:], entropy())
    assert isinstance(shared, Shared)
    with pytest.raises(ProtocolError, match="oslo was not in the step before"):
        shared.mask({}, (*FIVE.sites, "oslo"), INPUTS["amiens"])
    assert isinstance(masked, Masked)
    with pytest.raises(ProtocolError, match="3 sites are fewer than 4"):
        masked.confirm(FIVE.sites[:3])
    assert isinstance(signed, Signed)
    with pytest.raises(ProtocolError, match="it left out or altered the signature of amiens"):
        signed.unmask({})


@pytest.mark.parametrize("name", STATES)
def test_cuts_and_leftovers_are_refused_at_every_byte(name: str) -> None:
    data = dump(STATES[name])
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            load(data[:end], identity("amiens", FIVE))
    with pytest.raises(ProtocolError):
        load(data + b"\0", identity("amiens", FIVE))


@settings(max_examples=300)
@given(st.sampled_from(sorted(STATES)), st.data())
def test_a_changed_record_is_refused_or_read_as_some_state_of_this_site(name: str, data: st.DataObject) -> None:
    record = bytearray(dump(STATES[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(record)))
        record[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        state = load(bytes(record), identity("amiens", FIVE))
    except ProtocolError:
        return
    assert isinstance(state, Ended | Joined) or state.site == state.message.site == "amiens"
    assert dump(load(dump(state), identity("amiens", FIVE))) == dump(state)


@settings(max_examples=200)
@given(st.sampled_from(sorted(STATES)), st.binary(max_size=200))
def test_noise_is_refused(name: str, noise: bytes) -> None:
    tag = dump(STATES[name])[: 23 + 2 + len(name)]
    assert tag.endswith(name.encode())
    for record in (noise, tag + noise):
        try:
            load(record, identity("amiens", FIVE))
        except ProtocolError:
            continue


def test_an_unknown_kind_is_refused_by_name() -> None:
    record = dump(LIVES["Masked"]).replace(b"\0\6Masked", b"\0\6Tasked")
    with pytest.raises(ProtocolError, match="there is no state of a session called Tasked"):
        load(record, identity("amiens", FIVE))


@pytest.mark.parametrize("name", LIVES)
def test_another_site_s_state_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="this state of a session is another site's"):
        load(dump(LIVES[name]), identity("brno", FIVE))


@pytest.mark.parametrize("name", LIVES)
def test_of_a_session_under_another_roster_only_its_end_is_left(name: str) -> None:
    """Whoever approves another roster keeps nothing of the old one's sessions but whether step 5 was answered."""
    elsewhere = Identity("amiens", key("amiens"), roster(5, study="other"))
    left = load(dump(LIVES[name]), elsewhere)
    assert left == Ended(4, 1, name == "Unmasked", FIVE.sid0(), FIVE.roster)


def test_of_a_plain_session_under_another_roster_only_its_end_is_left() -> None:
    elsewhere = Identity("amiens", key("amiens"), roster(5, study="other"))
    assert load(dump(STATES["Joined"]), elsewhere) == Ended(4, 1, False, PLAIN.sid0(), PLAIN.roster)


def test_u1_in_another_order_is_refused() -> None:
    state = LIVES["Shared"]
    assert isinstance(state, Shared)
    brno, cluj = (
        len(data).to_bytes(4, "big") + data for data in (state.u1[site].to_bytes() for site in ("brno", "cluj"))
    )
    record = dump(state)
    assert brno + cluj in record
    with pytest.raises(ProtocolError):
        load(record.replace(brno + cluj, cluj + brno), identity("amiens", FIVE))


def test_a_record_whose_parts_do_not_fit_each_other_is_refused() -> None:
    state = LIVES["Signed"]
    assert isinstance(state, Signed)
    fewer = {site: held for site, held in state.held.items() if site != "brno"}
    with pytest.raises(ProtocolError):
        load(dump(dataclasses.replace(state, held=fewer)), identity("amiens", FIVE))


@pytest.mark.parametrize("name", STATES)
def test_the_end_remembers_the_round_the_attempt_and_whether_step_5_was_answered(name: str) -> None:
    last = ended(STATES[name])
    assert last == Ended(4, 1, name in ("Unmasked", "Ended"), session_of(STATES[name]), FIVE.roster)
    assert load(dump(last), identity("brno", FIVE)) == last


def test_an_end_is_of_a_session() -> None:
    with pytest.raises(ProtocolError, match="a session has 32 bytes, not 31"):
        Ended(4, 1, False, bytes(31), bytes(32))


SILENT, ANSWERED = Ended(4, 1, False, bytes(32), FIVE.roster), Ended(4, 1, True, bytes(32), FIVE.roster)


@pytest.mark.parametrize(
    ("state", "round", "attempt", "allowed"),
    [
        (None, 0, 1, True),
        (None, 4, 2, True),
        (SILENT, 3, 1, False),
        (SILENT, 3, 2, False),
        (SILENT, 4, 1, False),
        (SILENT, 4, 2, True),
        (SILENT, 5, 1, True),
        (SILENT, 5, 2, True),
        (ANSWERED, 3, 2, False),
        (ANSWERED, 4, 1, False),
        (ANSWERED, 4, 2, False),
        (ANSWERED, 5, 1, True),
        (Ended(4, 2, False, bytes(32), FIVE.roster), 4, 1, False),
        (Ended(4, 2, False, bytes(32), FIVE.roster), 4, 2, False),
        (Ended(4, 2, False, bytes(32), FIVE.roster), 5, 1, True),
        *((LIVES[name], 4, 1, False) for name in LIVES),
        *((LIVES[name], 4, 2, name != "Unmasked") for name in LIVES),
        *((LIVES[name], 3, 2, False) for name in LIVES),
        *((LIVES[name], 5, 1, True) for name in LIVES),
        (STATES["Joined"], 4, 1, False),
        (STATES["Joined"], 4, 2, True),
        (STATES["Joined"], 5, 1, True),
    ],
)
def test_which_session_may_be_joined_after_which(state: State | None, round: int, attempt: int, allowed: bool) -> None:
    assert may_join(state, session(5, round=round, attempt=attempt)) is allowed


def secrets_of(state: Live) -> list[Any]:
    """All that must not be seen: bytes and numbers."""
    held = list(getattr(state, "held", {}).values()) + ([state.own] if isinstance(state, Shared) else [])
    shares = [share for each in held for share in (each.seed_share, each.key_share)]
    keys = getattr(state, "keys", None)
    found: list[Any] = [state.identity.key, *(share.value for share in shares), *(share.to_bytes() for share in shares)]
    if keys is not None:
        found += [keys.envelope, keys.mask, keys.seed]
    if isinstance(state, Shared):
        found += state.message.sealed.values()
    if isinstance(state, Unmasked):
        found += [*state.message.seed_shares.values(), *state.message.key_shares.values()]
    return found


def shown(secret: Any) -> Sequence[str]:
    return (str(secret), hex(secret)) if isinstance(secret, int) else (repr(secret), secret.hex(), repr(secret)[2:-1])


@pytest.mark.parametrize("name", LIVES)
def test_no_repr_shows_a_secret(name: str) -> None:
    state = LIVES[name]
    found = secrets_of(state)
    assert len(found) >= {"Advertised": 4, "Shared": 12, "Masked": 21, "Signed": 21, "Unmasked": 6}[name]
    parts: list[Any] = [state, state.identity, state.identity.roster, state.message, getattr(state, "keys", None)]
    parts += getattr(state, "held", {}).values()
    text = " ".join(str(part) + repr(part) for part in parts)
    assert "amiens" in text
    assert not [name for name in ("keys=Keys(", "held=", "own=", "_share=", "_shares=", "sealed=") if name in text]
    assert not [spelled for secret in found for spelled in shown(secret) if spelled in text]


@pytest.mark.parametrize("kind", [Advertised, Shared, Masked, Signed])
def test_a_state_read_back_takes_its_step_once(kind: type) -> None:
    state = load(dump(LIVES[kind.__name__]), identity("amiens", FIVE))
    steps: dict[type, Callable[[Any], object]] = {
        Advertised: lambda each: each.share_keys([], entropy()),
        Shared: lambda each: each.mask({}, (), INPUTS["amiens"]),
        Masked: lambda each: each.confirm(()),
        Signed: lambda each: each.unmask({}),
    }
    with pytest.raises(ProtocolError, match="it left out"):
        steps[kind](state)
    with pytest.raises(ProtocolError, match="of this attempt already"):
        steps[kind](state)


def test_under_another_roster_no_other_attempt_at_the_round_is_joined() -> None:
    """A site that enrolled anew has forgotten that it answered attempt 1: with its help two sums could be had."""
    elsewhere = bytes(range(1, 33))
    last = Ended(4, 1, False, bytes(32), FIVE.roster)
    assert may_join(last, session(5, round=4, attempt=2))
    assert not may_join(last, session(5, round=4, attempt=2, roster=elsewhere))
    assert may_join(last, session(5, round=5, roster=elsewhere))
