from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import PlanError, ProtocolError, SiteFault
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.messages import (
    Advertisement,
    Envelopes,
    MaskedInput,
    SessionHeader,
    Shares,
    input_digest,
    seed_commitment,
    sid,
)
from fedseg.secagg.sealing import public_key
from fedseg.secagg.shamir import Share
from fedseg.secagg.thresholds import Thresholds

from .helpers import NAMES, session

Decoder = Callable[[bytes], Any]


def advertisement(site: str = "brno", number: int = 1) -> Advertisement:
    return Advertisement(site, public_key(bytes([number] * 32)), public_key(bytes([number + 1] * 32)), bytes(32))


SOME_KEY = public_key(bytes(32))
SHARE = Share(2, 12345).to_bytes()
EXAMPLES: list[Any] = [
    session(),
    session(10, dimension=1000, study="Étude fœtale"),
    session(thresholds=Thresholds.plain(3, 2)),
    session(accept_two=True),
    advertisement(),
    Envelopes("brno", {"cluj": bytes(86), "amiens": b"\1" * 86}),
    Envelopes("brno", {}),
    MaskedInput("brno", bytes(32)),
    Shares("brno", {"brno": SHARE, "amiens": SHARE}, {"cluj": SHARE}),
    Shares("brno", {}, {}),
]
DECODERS: list[Decoder] = [kind.from_bytes for kind in (SessionHeader, Advertisement, Envelopes, MaskedInput, Shares)]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_bytes_and_back(message: Any) -> None:
    data = message.to_bytes()
    assert type(message).from_bytes(data) == message
    assert type(message).from_bytes(data).to_bytes() == data


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_leftovers_and_cuts_are_refused_at_every_byte(message: Any) -> None:
    data = message.to_bytes()
    with pytest.raises(ProtocolError, match="followed by bytes that don't belong to it"):
        type(message).from_bytes(data + b"\0")
    for end in range(len(data)):
        with pytest.raises(ProtocolError, match=r"cut short|of another kind"):
            type(message).from_bytes(data[:end])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_changed_message_is_refused_or_says_exactly_what_it_reads(message: Any, data: st.DataObject) -> None:
    changed = bytearray(message.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = type(message).from_bytes(bytes(changed))
    except ProtocolError:
        return
    assert decoded.to_bytes() == bytes(changed)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DECODERS), st.sampled_from(EXAMPLES), st.binary(max_size=300))
def test_decoders_are_total(decode: Decoder, message: Any, noise: bytes) -> None:
    tag = message.to_bytes()[:28]
    for data in (noise, tag + noise):
        try:
            decode(data)
        except ProtocolError:
            continue


@pytest.mark.parametrize("decode", DECODERS)
def test_sizes_are_capped_before_anything_is_read(decode: Decoder) -> None:
    with pytest.raises(ProtocolError, match="longer than"):
        decode(bytes(2**20 + 1))


def test_a_claimed_count_is_capped() -> None:
    data = bytearray(Envelopes("brno", {}).to_bytes())
    data[-2:] = b"\xff\xff"
    with pytest.raises(ProtocolError, match="holding more than 100 entries"):
        Envelopes.from_bytes(bytes(data))


def test_another_kind_of_message_is_refused() -> None:
    with pytest.raises(ProtocolError, match="this advertisement is of another kind or version"):
        Advertisement.from_bytes(MaskedInput("brno", bytes(32)).to_bytes())


def test_a_second_order_of_a_map_is_refused() -> None:
    data = Envelopes("brno", {"amiens": bytes(86), "essena": bytes(86)}).to_bytes()
    swapped = data.replace(b"amiens", b"xxxxxx").replace(b"essena", b"amiens").replace(b"xxxxxx", b"essena")
    with pytest.raises(ProtocolError, match="not sorted, or names a site twice"):
        Envelopes.from_bytes(swapped)
    with pytest.raises(ProtocolError, match="not sorted, or names a site twice"):
        Envelopes.from_bytes(data.replace(b"essena", b"amiens"))


def test_both_kinds_of_share_for_one_site_cannot_be_said() -> None:
    """Regression: "a site that reveals both kinds of share for one id that is in both lists" (Flower SecAgg+)."""
    with pytest.raises(SiteFault, match="site brno at Unmasking: both kinds of share for cluj"):
        Shares("brno", {"brno": SHARE, "cluj": SHARE}, {"cluj": SHARE})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shares("brno", {"brno": SHARE, "cluj": Share(1, 1).to_bytes()}, {}), "more than one holder"),
        (lambda: Shares("brno", {"brno": SHARE[:-1]}, {}), "34 bytes for brno instead of 35"),
        (lambda: Envelopes("brno", {"cluj": bytes(85)}), "85 bytes for cluj instead of 86"),
        (lambda: Envelopes("brno", {"brno": bytes(86)}), "addressed an envelope to itself"),
        (lambda: Advertisement("brno", bytes(32), public_key(bytes(32)), bytes(32)), "brno at Adv.*low order"),
        (lambda: Advertisement("brno", public_key(bytes(32)), b"\xff" * 32, bytes(32)), "not in canonical form"),
        (
            lambda: Advertisement("brno", public_key(bytes(32)), public_key(bytes(32)), bytes(32)),
            "two keys are one and the same",
        ),
        (lambda: dataclasses.replace(advertisement(), seed_commitment=b""), "seed commitment has 32 bytes, not 0"),
        (lambda: MaskedInput("brno", b""), "digest of a masked input has 32 bytes, not 0"),
        (lambda: MaskedInput("", bytes(32)), "a site name is empty or not printable"),
        (lambda: MaskedInput("a\nb", bytes(32)), "a site name is empty or not printable"),
        (lambda: MaskedInput("é" * 33, bytes(32)), "a site name is longer than 64 bytes"),
    ],
)
def test_messages_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan_hash": b""}, "a plan hash has 32 bytes, not 0"),
        ({"model_hash": bytes(31)}, "a model hash has 32 bytes, not 31"),
        ({"attempt": 3}, "round 4, attempt 3 cannot be"),
        ({"round": -1}, "round -1, attempt 1 cannot be"),
        ({"study": ""}, "a study name is empty"),
        ({"sites": ("amiens", "cluj", "brno")}, "the roster is not sorted"),
        ({"sites": ("amiens", "brno", "brno")}, "names a site twice"),
    ],
)
def test_headers_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        dataclasses.replace(session(), **change)


@pytest.mark.parametrize(
    "change",
    [{"t": 1}, {"m": 1}, {"t": 3}, {"c": 2}, {"scale": 1.0}, {"scale": float("nan")}, {"ring_bits": 16}, {"clip": 4.0}],
)
def test_a_server_cannot_choose_thresholds_or_ring(change: dict[str, Any]) -> None:
    """Regression: "a threshold of 1 accepted" (Flower SecAgg+)."""
    with pytest.raises(PlanError):
        dataclasses.replace(session(), **change)


def test_thresholds_of_another_study_are_refused_on_the_wire_too() -> None:
    data = session().to_bytes()
    assert data[-4:] == b"\0\2\0\3"
    with pytest.raises(ProtocolError, match="thresholds t = 1, m = 3 are not those of 3 sites"):
        SessionHeader.from_bytes(data[:-4] + b"\0\1\0\3")


OTHERS: list[dict[str, Any]] = [
    {"study": "other"},
    {"plan_hash": bytes(32)},
    {"round": 5},
    {"attempt": 2},
    {"model_hash": bytes(32)},
    {"encoding": Encoding(3, 2.0, 10, 6)},
    {"encoding": Encoding(3, 2.1, 10, 5)},
    {"encoding": Encoding(3, 2.0, 11, 5)},
    {"sites": ("amiens", "brno", "dakar")},
    {"thresholds": Thresholds.of(3, 1)},
    {"thresholds": Thresholds.of(3, 0, accept_two=True)},
    {"thresholds": Thresholds.plain(3, 3)},
]


@pytest.mark.parametrize("change", OTHERS)
def test_every_field_is_in_sid0_and_is_compared(change: dict[str, Any]) -> None:
    mine, offered = session(), session(**change)
    assert mine.sid0() != offered.sid0()
    with pytest.raises(ProtocolError, match="is not the one this site expects"):
        mine.check_offer(offered)


def test_an_equal_offer_is_taken_and_a_different_one_named() -> None:
    session().check_offer(SessionHeader.from_bytes(session().to_bytes()))
    with pytest.raises(ProtocolError, match="the session's model hash is not the one"):
        session().check_offer(session(model_hash=bytes(32)))


def test_sid_covers_every_byte_of_every_advertisement_in_any_order() -> None:
    header = session()
    u1 = [advertisement(site, 2 * place + 1) for place, site in enumerate(NAMES[:3])]
    base = sid(header, u1)
    assert sid(header, u1[::-1]) == base
    changed = [
        sid(session(round=5), u1),
        sid(header, u1[:2]),
        sid(header, [*u1[:2], dataclasses.replace(u1[2], seed_commitment=b"\1" * 32)]),
        sid(header, [*u1[:2], dataclasses.replace(u1[2], envelope_key=public_key(b"z" * 32))]),
        sid(header, [*u1[:2], dataclasses.replace(u1[2], site="dakar")]),
    ]
    assert len({base, *changed}) == 6


def test_digest_covers_session_sender_u2_and_vector() -> None:
    vector = np.arange(6, dtype=np.uint32)
    digests = {
        input_digest(b"a" * 32, "brno", ("brno", "cluj"), vector),
        input_digest(b"b" * 32, "brno", ("brno", "cluj"), vector),
        input_digest(b"a" * 32, "cluj", ("brno", "cluj"), vector),
        input_digest(b"a" * 32, "brno", ("brno", "dakar"), vector),
        input_digest(b"a" * 32, "brno", ("brno", "cluj"), vector + np.uint32(1)),
    }
    assert len(digests) == 5
    assert input_digest(b"a" * 32, "brno", ("brno", "cluj"), np.arange(12, dtype=np.uint32)[::2] // 2) in digests


def test_commitments_are_bound_to_session_and_site() -> None:
    header, other = session(), session(attempt=2)
    seeds = {
        seed_commitment(h, s, k) for h in (header, other) for s in ("brno", "cluj") for k in (b"1" * 32, b"2" * 32)
    }
    assert len(seeds) == 8


def test_unknown_sites_have_no_index() -> None:
    assert [session().index(site) for site in NAMES[:3]] == [1, 2, 3]
    with pytest.raises(ProtocolError, match="the roster of study atlas does not name oslo"):
        session().index("oslo")
