from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.messages import (
    Advertisement,
    Consistency,
    Envelopes,
    MaskedInput,
    SessionHeader,
    Shares,
    input_digest,
    seed_commitment,
    sid,
)
from fedseg.secagg.roster import Roster
from fedseg.secagg.sealing import public_key
from fedseg.secagg.shamir import Share
from fedseg.secagg.thresholds import Thresholds

from .helpers import NAMES, roster, session

Decoder = Callable[[bytes], Any]
SIGNATURE = bytes(range(64))


def advertisement(site: str = "brno", number: int = 1) -> Advertisement:
    one, two = (public_key(bytes([number + step] * 32)) for step in (0, 1))
    return Advertisement(site, one, two, bytes(32), SIGNATURE)


SHARE = Share(2, 12345).to_bytes()
EXAMPLES: list[Any] = [
    session(),
    session(10, dimension=1000, study="Étude fœtale"),
    session(thresholds=Thresholds.plain(3, 2)),
    session(accept_two=True),
    session(encoding=Encoding(3, 2.0, 10, 5, scored=True)),
    roster(),
    roster(10, study="Étude fœtale"),
    advertisement(),
    Envelopes("brno", {"cluj": bytes(86), "amiens": b"\1" * 86}),
    Envelopes("brno", {}),
    MaskedInput("brno", bytes(32), SIGNATURE),
    Consistency("brno", SIGNATURE),
    Shares("brno", {"brno": SHARE, "amiens": SHARE}, {"cluj": SHARE}, SIGNATURE),
    Shares("brno", {}, {}, SIGNATURE),
]
KINDS = (SessionHeader, Roster, Advertisement, Envelopes, MaskedInput, Consistency, Shares)
DECODERS: list[Decoder] = [kind.from_bytes for kind in KINDS]


def test_every_kind_of_message_is_among_the_examples() -> None:
    assert {type(example) for example in EXAMPLES} == set(KINDS)


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


@settings(max_examples=200)
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


@settings(max_examples=200)
@given(st.sampled_from(DECODERS), st.sampled_from(EXAMPLES), st.binary(max_size=300))
def test_decoders_are_total(decode: Decoder, message: Any, noise: bytes) -> None:
    tag = message.to_bytes()[:28]
    for data in (noise, tag + noise):
        try:
            decode(data)
        except ProtocolError:
            continue


CAPS = (2**20, 2**20, 1024, 32_768, 1024, 1024, 32_768)


@pytest.mark.parametrize(("kind", "cap"), list(zip(KINDS, CAPS, strict=True)))
def test_sizes_are_capped_before_anything_is_read(kind: type[Any], cap: int) -> None:
    with pytest.raises(ProtocolError, match=f"longer than {cap} bytes"):
        kind.from_bytes(bytes(cap + 1))
    with pytest.raises(ProtocolError, match="of another kind"):
        kind.from_bytes(bytes(cap))


def test_the_largest_messages_are_within_the_caps() -> None:
    sites = tuple(f"{number:064}" for number in range(100))
    header = session(
        100, sites=sites, encoding=Encoding(100, 1.0, 1, 5), thresholds=Thresholds.of(100), study="s" * 200
    )
    share, one, two = Share(100, 2**256).to_bytes(), public_key(b"1" * 32), public_key(b"2" * 32)
    for message in (
        header,
        Advertisement(sites[0], one, two, bytes(32), SIGNATURE),
        Envelopes(sites[0], dict.fromkeys(sites[1:], bytes(86))),
        MaskedInput(sites[0], bytes(32), SIGNATURE),
        Consistency(sites[0], SIGNATURE),
        Shares(sites[0], dict.fromkeys(sites[1:], share), {sites[0]: share}, SIGNATURE),
    ):
        assert type(message).from_bytes(message.to_bytes()) == message


def test_a_claimed_count_is_capped() -> None:
    data = bytearray(Envelopes("brno", {}).to_bytes())
    data[-2:] = b"\xff\xff"
    with pytest.raises(ProtocolError, match="holding more than 100 entries"):
        Envelopes.from_bytes(bytes(data))


def test_another_kind_of_message_is_refused() -> None:
    with pytest.raises(ProtocolError, match="this advertisement is of another kind or version"):
        Advertisement.from_bytes(MaskedInput("brno", bytes(32), SIGNATURE).to_bytes())
    for one in EXAMPLES:
        for decode in (kind.from_bytes for kind in KINDS if kind is not type(one)):
            with pytest.raises(ProtocolError, match=r"is (of another kind or version|cut short)"):
                decode(one.to_bytes())


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
        Shares("brno", {"brno": SHARE, "cluj": SHARE}, {"cluj": SHARE}, SIGNATURE)
    one = Shares("brno", {"brno": SHARE, "cluj": SHARE}, {"dakaa": SHARE}, SIGNATURE).to_bytes()
    with pytest.raises(SiteFault, match="both kinds of share for brno"):
        Shares.from_bytes(one.replace(b"\0\5dakaa", b"\0\4brno"))


def changed(**fields: Any) -> Advertisement:
    return dataclasses.replace(advertisement(), **fields)


def shares(seed_shares: dict[str, bytes], key_shares: dict[str, bytes]) -> Shares:
    return Shares("brno", seed_shares, key_shares, SIGNATURE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shares({"brno": SHARE, "cluj": Share(1, 1).to_bytes()}, {}), "more than one holder"),
        (lambda: shares({"brno": SHARE}, {"cluj": Share(1, 1).to_bytes()}), "more than one holder"),
        (lambda: shares({"brno": SHARE[:-1]}, {}), "34 bytes for brno instead of 35"),
        (lambda: shares({}, {"brno": SHARE[:-1]}), "34 bytes for brno instead of 35"),
        (lambda: shares({"brno": bytes(35)}, {}), "a secret share is out of range"),
        (lambda: shares({"": SHARE}, {}), "a site name is empty or not printable"),
        (lambda: Envelopes("brno", {"cluj": bytes(85)}), "85 bytes for cluj instead of 86"),
        (lambda: Envelopes("brno", {"brno": bytes(86)}), "addressed an envelope to itself"),
        (lambda: Envelopes("", {}), "a site name is empty or not printable"),
        (lambda: changed(envelope_key=bytes(32)), "brno at Adv.*low order"),
        (lambda: changed(mask_key=bytes(32)), "brno at Adv.*low order"),
        (lambda: changed(mask_key=b"\xff" * 32), "brno at Adv.*not in canonical form"),
        (lambda: changed(envelope_key=b"\xff" * 32), "brno at Adv.*not in canonical form"),
        (lambda: changed(envelope_key=advertisement().mask_key), "two keys are one and the same"),
        (lambda: changed(envelope_key=b""), "a public key has 32 bytes, not 0"),
        (lambda: changed(seed_commitment=b""), "seed commitment has 32 bytes, not 0"),
        (lambda: changed(signature=b""), "brno at Adv.*a signature has 64 bytes, not 0"),
        (lambda: changed(site="a\nb"), "a site name is empty or not printable"),
        (lambda: MaskedInput("brno", b"", SIGNATURE), "digest of a masked input has 32 bytes, not 0"),
        (lambda: MaskedInput("brno", bytes(32), bytes(63)), "a signature has 64 bytes, not 63"),
        (lambda: MaskedInput("", bytes(32), SIGNATURE), "a site name is empty or not printable"),
        (lambda: MaskedInput("a\nb", bytes(32), SIGNATURE), "a site name is empty or not printable"),
        (lambda: MaskedInput("é" * 33, bytes(32), SIGNATURE), "a site name is longer than 64 bytes"),
        (lambda: Consistency("", SIGNATURE), "a site name is empty or not printable"),
        (lambda: Consistency("brno", bytes(65)), "a signature has 64 bytes, not 65"),
        (lambda: Shares("brno", {}, {}, b""), "a signature has 64 bytes, not 0"),
    ],
)
def test_messages_that_cannot_be_meant(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        make()


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
        sid(header, [*u1[:2], dataclasses.replace(u1[2], mask_key=public_key(b"z" * 32))]),
        sid(header, [*u1[:2], dataclasses.replace(u1[2], signature=bytes(64))]),
        sid(header, [*u1[:2], dataclasses.replace(u1[2], site="dakar")]),
    ]
    assert len({base, *changed}) == 8


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


def test_maps_are_frozen_and_shares_and_envelopes_stay_out_of_reprs() -> None:
    seed_shares = {"brno": SHARE}
    message = shares(seed_shares, {"cluj": SHARE})
    seed_shares["cluj"] = SHARE
    assert set(message.seed_shares) == {"brno"}
    with pytest.raises(TypeError):
        message.seed_shares["cluj"] = SHARE  # type: ignore[index]
    envelopes = Envelopes("brno", {"cluj": b"E" * 86})
    assert "EEE" not in repr(envelopes)
    assert repr(SHARE) not in repr(message)
