"""Signatures: what they cover, and the keys that are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.messages import Advertisement, Consistency, MaskedInput, Shares
from fedseg.secagg.sealing import public_key
from fedseg.secagg.shamir import Share
from fedseg.secagg.signing import check_signing_key, public_half, sign, verify

from . import textbook
from .helpers import NAMES, identity, key, roster, session
from .known import lines

SHARE = Share(2, 12345).to_bytes()
SIGNATURE = bytes(range(64))


def signed_messages() -> dict[str, tuple[Any, Callable[[Any], None]]]:
    """One of each kind by brno, and how it is verified."""
    header, brno, named = session(), identity("brno"), b"n" * 32
    one, two = (public_key(bytes([number] * 32)) for number in (1, 2))
    sets = (header.sites, ("amiens", "brno"))
    return {
        "advertisement": (
            Advertisement.signed(header, brno, one, two, bytes(32)),
            lambda message: message.verify(header, roster()),
        ),
        "masked": (MaskedInput.signed(named, brno, bytes(32)), lambda message: message.verify(named, roster())),
        "consistency": (
            Consistency.signed(named, brno, *sets),
            lambda message: message.verify(named, roster(), *sets),
        ),
        "shares": (
            Shares.signed(named, brno, {"brno": SHARE, "amiens": SHARE}, {"cluj": SHARE}),
            lambda message: message.verify(named, roster()),
        ),
    }


ALTERED: list[tuple[str, dict[str, Any]]] = [
    *(("advertisement", {name: public_key(b"x" * 32)}) for name in ("envelope_key", "mask_key")),
    ("advertisement", {"seed_commitment": b"\1" * 32}),
    ("masked", {"digest": b"\1" * 32}),
    ("shares", {"seed_shares": {"brno": SHARE}}),
    ("shares", {"key_shares": {}}),
    ("shares", {"seed_shares": {"brno": SHARE, "amiens": Share(2, 12346).to_bytes()}}),
    ("shares", {"seed_shares": {"brno": SHARE}, "key_shares": {"amiens": SHARE, "cluj": SHARE}}),
    *((kind, {"site": "amiens"}) for kind in signed_messages()),
    *((kind, {"signature": SIGNATURE}) for kind in signed_messages()),
]


@pytest.mark.parametrize(("kind", "change"), ALTERED)
def test_a_signature_covers_its_message_and_sender(kind: str, change: dict[str, Any]) -> None:
    message, verify = signed_messages()[kind]
    verify(message)
    altered = dataclasses.replace(message, **change)
    with pytest.raises(SiteFault, match=rf"site {altered.site} at .*: the signature of {altered.site} in .* does not"):
        verify(altered)


def test_a_signature_covers_its_session_and_sets() -> None:
    header, brno, named, sets = session(), identity("brno"), b"n" * 32, (NAMES[:3], NAMES[:2])
    messages = {kind: message for kind, (message, _) in signed_messages().items()}
    refusals: list[Callable[[], None]] = [
        lambda: messages["advertisement"].verify(session(attempt=2), roster()),
        lambda: messages["masked"].verify(bytes(32), roster()),
        lambda: messages["shares"].verify(bytes(32), roster()),
        lambda: messages["consistency"].verify(bytes(32), roster(), *sets),
        lambda: messages["consistency"].verify(named, roster(), NAMES[:2], NAMES[:2]),
        lambda: messages["consistency"].verify(named, roster(), NAMES[:3], NAMES[:3]),
        lambda: messages["consistency"].verify(named, roster(), NAMES[:2], NAMES[:3]),
    ]
    for refusal in refusals:
        with pytest.raises(SiteFault, match=r"the signature of brno in .* does not verify"):
            refusal()
    assert messages["consistency"] == Consistency.signed(named, brno, sets[0][::-1], sets[1][::-1])
    assert header.sites == sets[0]


@pytest.mark.parametrize("kind", signed_messages())
def test_a_sender_whom_the_roster_does_not_name_is_refused(kind: str) -> None:
    message, verify = signed_messages()[kind]
    with pytest.raises(SiteFault, match=r"site oslo at .*: the roster does not name it"):
        verify(dataclasses.replace(message, site="oslo"))


def test_no_signature_is_good_for_another_step() -> None:
    """Each kind with the signature that the same site made for each other kind."""
    kinds = signed_messages()
    for kind, (message, check) in kinds.items():
        for other in kinds.keys() - {kind}:
            with pytest.raises(SiteFault, match="does not verify"):
                check(dataclasses.replace(message, signature=kinds[other][0].signature))


def statement(step: str, session: bytes, site: str, content: bytes) -> bytes:
    framed = [len(text.encode()).to_bytes(2, "big") + text.encode() for text in (step, site)]
    return b"fedseg/secagg/v1/signature\0" + framed[0] + session + framed[1] + content


def test_ed25519_rfc_8032_section_7_1() -> None:
    """The authors' own list, which the RFC's first three and its SHA(abc) are of: keys, and raw signatures."""
    cases = [[bytes.fromhex(part) for part in line.split(":")[:4]] for line in lines("asymmetric/Ed25519/sign.input")]
    assert len(cases) == 1024
    assert cases[0][1].hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert cases[1][3].hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    for private, public, message, signature in (case for case in cases[:10] + cases[10::50]):
        assert public_half(private[:32]) == textbook.ed25519_public(private[:32]) == public
        assert textbook.ed25519_sign(private[:32], message) == signature[:64]
        assert Ed25519PrivateKey.from_private_bytes(private[:32]).sign(message) == signature[:64]
        assert textbook.ed25519_verify(public, message, signature[:64])
        assert not textbook.ed25519_verify(public, message + b"x", signature[:64])
        check_signing_key(public)


@pytest.mark.parametrize("site", ["brno", "orléans"])
def test_a_signature_is_ed25519_of_the_framed_statement(site: str) -> None:
    expected = textbook.ed25519_sign(key(site), statement("Unmasking", b"s" * 32, site, b"said"))
    assert sign(key(site), "Unmasking", b"s" * 32, site, b"said") == expected
    verify(public_half(key(site)), "Unmasking", b"s" * 32, site, b"said", expected)
    assert sign(key(site), "Unmasking", b"s" * 32, site, b"said") == expected, "the same again gives the same bytes"


GOOD: dict[str, Any] = {
    "public": public_half(key("brno")),
    "step": "Close",
    "session": b"s" * 32,
    "site": "brno",
    "content": b"cluj",
    "signature": sign(key("brno"), "Close", b"s" * 32, "brno", b"cluj"),
}


@pytest.mark.parametrize(
    "change",
    [
        {"public": public_half(key("cluj"))},
        {"public": (2).to_bytes(32, "little")},
        {"step": "Clos"},
        {"step": ""},
        {"session": b"t" * 32},
        {"site": "brn", "content": b"ocluj"},
        {"site": "brnoc", "content": b"luj"},
        {"site": "cluj"},
        {"content": b"clu"},
        {"content": b"cluj\0"},
        {"signature": bytes(64)},
        {"signature": GOOD["signature"][:63]},
        {"signature": GOOD["signature"] + b"\0"},
        {"signature": b""},
    ],
)
def test_anything_else_does_not_verify(change: dict[str, Any]) -> None:
    verify(**GOOD)
    with pytest.raises(ProtocolError, match=r"the signature of \w+ in \w* does not verify"):
        verify(**(GOOD | change))


def test_a_signature_has_one_spelling() -> None:
    """S plus the order of the group satisfies the same equation: RFC 8032 refuses it."""
    again = int.from_bytes(GOOD["signature"][32:], "little") + textbook.L
    malleated = GOOD["signature"][:32] + again.to_bytes(32, "little")
    with pytest.raises(ProtocolError, match="the signature of brno in Close does not verify"):
        verify(**(GOOD | {"signature": malleated}))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_sizes_of_keys_and_sessions(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"a protocol key has 32 bytes, not {size}"):
        public_half(bytes(size))
    with pytest.raises(ProtocolError, match=f"a protocol key has 32 bytes, not {size}"):
        sign(bytes(size), "Close", bytes(32), "brno", b"")
    with pytest.raises(ProtocolError, match=f"a protocol key has 32 bytes, not {size}"):
        verify(**(GOOD | {"public": bytes(size)}))
    with pytest.raises(ProtocolError, match=f"a session has 32 bytes, not {size}"):
        sign(key("brno"), "Close", bytes(size), "brno", b"")
    with pytest.raises(ProtocolError, match=f"a session has 32 bytes, not {size}"):
        verify(**(GOOD | {"session": bytes(size)}))


def points_of_order_dividing_8() -> list[textbook.Point]:
    """All of them: the group is cyclic of order 8 L with L prime, so L times a point that suits generates them."""
    for y in range(2, 100):
        try:
            generator = textbook.times(textbook.L, textbook.decompress(y.to_bytes(32, "little")))
        except ValueError:
            continue
        points = [textbook.times(k, generator) for k in range(8)]
        if len({textbook.compress(point) for point in points}) == 8:
            return points
    raise AssertionError


def test_exactly_the_points_of_order_dividing_8_are_refused_as_low() -> None:
    points = points_of_order_dividing_8()
    neutral = textbook.compress(textbook.NEUTRAL)
    assert textbook.compress(textbook.times(textbook.L, textbook.BASE)) == neutral
    assert all(textbook.compress(textbook.times(8, point)) == neutral for point in points)
    encodings = {textbook.compress(point) for point in points}
    ys = {int.from_bytes(data, "little") % 2**255 for data in encodings}
    assert (len(encodings), len(ys)) == (8, 5)
    for y in ys:
        for sign_bit in (0, 1):
            with pytest.raises(ProtocolError, match="a point of low order, under which anybody can sign"):
                check_signing_key((y | sign_bit << 255).to_bytes(32, "little"))
    for shift in points:
        mixed = textbook.compress(textbook.add(textbook.BASE, shift))
        assert mixed not in encodings
        check_signing_key(mixed)
    accepted = []
    for y in range(2, 2000):
        if y not in ys:
            check_signing_key(y.to_bytes(32, "little"))
            accepted.append(y)
    assert len(accepted) == 1998


@pytest.mark.parametrize("y", range(19))
def test_a_second_spelling_of_a_protocol_key_is_refused(y: int) -> None:
    for sign_bit in (0, 1):
        spelled = (y + textbook.P | sign_bit << 255).to_bytes(32, "little")
        with pytest.raises(ProtocolError, match="a protocol key is not in canonical form"):
            check_signing_key(spelled)
    check_signing_key((textbook.P - 2).to_bytes(32, "little"))


def test_why_they_are_refused() -> None:
    """Under the neutral point the neutral point and S = 0 sign everything, and OpenSSL says so."""
    neutral = textbook.compress(textbook.NEUTRAL)
    forged = neutral + bytes(32)
    Ed25519PublicKey.from_public_bytes(neutral).verify(forged, statement("Close", b"s" * 32, "brno", b"anything"))
    with pytest.raises(ProtocolError, match="low order"):
        verify(neutral, "Close", b"s" * 32, "brno", b"anything", forged)
