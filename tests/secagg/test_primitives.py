"""Known answers: what the standards print comes out of the very functions that the protocol calls.

Where such a function does more than the standard's (it fixes a counter, an `info`, a nonce), the answers are had from
`textbook`, and the function is compared with that. Ed25519's are in `test_signing`, Shamir's in `test_shamir`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.secagg.masking import PIECE, add_mask, derive, keystream, pair_mask_key, pair_sign, self_mask_key
from fedseg.secagg.sealing import agree, check_public_key, open_envelope, public_key, seal
from fedseg.secagg.shamir import Share

from . import textbook
from .known import answers

X25519_RFC_7748_5_2 = [
    tuple(bytes.fromhex(case[name]) for name in ("input_scalar", "input_u", "output_u"))
    for case in answers("asymmetric/X25519/rfc7748.txt")
]
# Wycheproof's small-order points on curve and twist, in canonical spelling.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
# Wycheproof's others: p, p + 1 and all of these with bit 255 set; and a good point with bit 255 set.
SECOND_SPELLINGS = [
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1ccc",
]
Exchange = Callable[[bytes, bytes], bytes]


@pytest.mark.parametrize("exchange", [agree, textbook.x25519])
def test_x25519_rfc_7748_section_5_2(exchange: Exchange) -> None:
    assert len(X25519_RFC_7748_5_2) == 3
    for scalar, point, answer in X25519_RFC_7748_5_2:
        assert exchange(scalar, point) == answer


@pytest.mark.parametrize(
    ("exchange", "times", "answer"),
    [
        (agree, 1, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
        (agree, 1000, "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"),
        (textbook.x25519, 1, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
        (textbook.x25519, 1000, "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"),
    ],
)
def test_x25519_rfc_7748_iterated(exchange: Exchange, times: int, answer: str) -> None:
    k = u = bytes([9]) + bytes(31)
    for _ in range(times):
        k, u = exchange(k, u), k
    assert k.hex() == answer


def test_x25519_rfc_7748_section_6_1() -> None:
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert public_key(bob) == textbook.x25519_public(bob)
    assert agree(bob, alice_public).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    check_public_key(alice_public)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point: str) -> None:
    assert textbook.x25519(bytes(range(32)), bytes.fromhex(point)) == bytes(32)
    with pytest.raises(ProtocolError, match="low order"):
        check_public_key(bytes.fromhex(point))
    with pytest.raises(ProtocolError, match="low order"):
        agree(bytes(range(32)), bytes.fromhex(point))


@pytest.mark.parametrize("point", SECOND_SPELLINGS)
def test_a_second_spelling_of_a_point_is_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="not in canonical form"):
        check_public_key(bytes.fromhex(point))


def test_the_ends_of_the_canonical_range() -> None:
    for value in (2, 2**255 - 21):
        check_public_key(value.to_bytes(32, "little"))
    for size in (0, 31, 33):
        with pytest.raises(ProtocolError, match=f"a public key has 32 bytes, not {size}"):
            check_public_key(bytes(size))


def test_hkdf_rfc_5869_and_derive_by_it() -> None:
    cases = [
        (bytes.fromhex(case["ikm"]), bytes.fromhex(case["salt"]), bytes.fromhex(case["info"]), case)
        for case in answers("KDF/rfc-5869-HKDF-SHA256.txt")
    ]
    assert len(cases) == 3
    for secret, salt, info, case in cases:
        assert textbook.hkdf(secret, salt, info, int(case["l"])).hex() == case["okm"]
    info = b"fedseg/secagg/v1/pair-mask\0" + b"\0\x05dakar" + b"\0\x03fez"
    for length in (32, 44):
        expected = textbook.hkdf(b"secret", b"sid", info, length)
        assert derive(b"secret", b"sid", b"pair-mask", "dakar", "fez", length=length) == expected


def test_ctr_sp_800_38a_f_5_5() -> None:
    """The standard's counter begins at f0f1...ff, a mask's at zero: the answer is `textbook`'s, the mask is as it."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    stream = textbook.counter_mode(key, int.from_bytes(bytes(range(0xF0, 0x100)), "big"), 64)
    assert bytes(a ^ b for a, b in zip(plain, stream, strict=True)).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    ((_, words),) = list(keystream(key, 1000))
    assert words.tobytes() == textbook.counter_mode(key, 0, 4000)


def test_a_mask_begins_with_nist_s_answers_for_the_zero_block() -> None:
    """AES-256's known answers of the zero block, under 272 keys: counter zero of as many masks."""
    found = 0
    for name in ("ECBVarKey256", "ECBKeySbox256"):
        for case in answers(f"ciphers/AES/ECB/{name}.rsp"):
            if case["plaintext"] == "0" * 32:
                ((_, words),) = list(keystream(bytes.fromhex(case["key"]), 4))
                assert words.tobytes().hex() == case["ciphertext"]
                found += 1
    assert found == 2 * (256 + 16), "each case stands under ENCRYPT and again under DECRYPT"


def test_keystream_is_aes_256_of_the_counter() -> None:
    """The GCM specification's cases 13 and 14 print AES-256 under the zero key of the counters 0, 1 and 2."""
    known = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"
    ((where, words),) = list(keystream(bytes(32), 12))
    assert (where, words.tobytes().hex()) == (slice(0, 12), known)


def test_gcm_nist_s_answers() -> None:
    """Every tenth of those with an envelope's sizes of nonce and tag: OpenSSL's, which seals, and `textbook`'s."""
    cases = [
        case
        for case in answers("ciphers/AES/GCM/gcmEncryptExtIV256.rsp")
        if (case["ivlen"], case["taglen"]) == ("96", "128")
    ]
    assert len(cases) == 375
    for case in cases[::10]:
        key, nonce, plain, context = (bytes.fromhex(case[name]) for name in ("key", "iv", "pt", "aad"))
        sealed = AESGCM(key).encrypt(nonce, plain, context)
        assert sealed.hex() == case["ct"] + case["tag"]
        assert textbook.gcm_crypt(key, nonce, plain).hex() == case["ct"]
        assert textbook.gcm_tag(key, nonce, bytes.fromhex(case["ct"]), context).hex() == case["tag"]


def test_an_envelope_is_gcm_under_a_derived_key_and_nonce() -> None:
    material = derive(bytes(32), b"s" * 32, b"envelope", "brno", "cluj", length=44)
    plain = Share(3, 5).to_bytes() + Share(3, 7).to_bytes()
    sealed = textbook.gcm_crypt(material[:32], material[32:], plain)
    context = b"s" * 32 + b"\0brno\0cluj"
    assert envelope() == sealed + textbook.gcm_tag(material[:32], material[32:], sealed, context)


@pytest.mark.parametrize("length", [1, 3, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5])
def test_mask_in_pieces_is_the_stream_in_one(length: int) -> None:
    key = bytes(range(32))
    counters = b"".join(block.to_bytes(16, "big") for block in range(-(-length // 4)))
    stream = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(counters)
    vector = np.arange(length, dtype=np.uint32) * np.uint32(2654435761)
    expected = vector + np.frombuffer(stream, dtype="<u4")[:length]
    masked = vector.copy()
    add_mask(masked, key, 1)
    np.testing.assert_array_equal(masked, expected)
    add_mask(masked, key, -1)
    np.testing.assert_array_equal(masked, vector)


def test_add_mask_refuses_what_it_cannot_mask() -> None:
    with pytest.raises(ProtocolError, match="cannot mask a uint32 array of 1 axes with sign 0"):
        add_mask(np.zeros(3, np.uint32), bytes(32), 0)
    with pytest.raises(ProtocolError, match="cannot mask a int64 array"):
        add_mask(np.zeros(3, np.int64), bytes(32), 1)
    with pytest.raises(ProtocolError, match="cannot mask a uint32 array of 2 axes with sign 1"):
        add_mask(np.zeros((3, 1), np.uint32), bytes(32), 1)


def test_keys_differ_by_purpose_session_and_site() -> None:
    secret, sid, other = bytes(32), b"a" * 32, b"b" * 32
    keys = [
        self_mask_key(secret, sid, "brno"),
        self_mask_key(secret, other, "brno"),
        self_mask_key(secret, sid, "cluj"),
        pair_mask_key(secret, sid, "brno", "cluj"),
        pair_mask_key(secret, other, "brno", "cluj"),
        pair_mask_key(secret, sid, "brnoc", "luj"),
        derive(secret, sid, b"envelope", "brno", "cluj"),
        derive(secret, sid, b"envelope", "cluj", "brno"),
    ]
    assert len(set(keys)) == len(keys)
    assert pair_mask_key(secret, sid, "cluj", "brno") == pair_mask_key(secret, sid, "brno", "cluj")
    assert pair_sign("brno", "cluj") == -pair_sign("cluj", "brno") == 1


def envelope(**changes: object) -> bytes:
    values = {"sender": "brno", "receiver": "cluj", "seed_share": Share(3, 5), "key_share": Share(3, 7)} | changes
    return seal(bytes(32), b"s" * 32, **values)  # type: ignore[arg-type]


def test_an_envelope_opens_only_for_its_pair_direction_and_session() -> None:
    sealed = envelope()
    assert len(sealed) == 86
    assert open_envelope(bytes(32), b"s" * 32, "brno", "cluj", sealed) == (Share(3, 5), Share(3, 7))
    for agreed, sid, sender, receiver in (
        (b"x" * 32, b"s" * 32, "brno", "cluj"),
        (bytes(32), b"t" * 32, "brno", "cluj"),
        (bytes(32), b"s" * 32, "cluj", "brno"),
        (bytes(32), b"s" * 32, "brno", "dakar"),
    ):
        with pytest.raises(ProtocolError, match="envelope failed to open"):
            open_envelope(agreed, sid, sender, receiver, sealed)


@settings(max_examples=40)
@given(st.integers(0, 85), st.integers(1, 255))
def test_an_envelope_with_any_byte_changed_does_not_open(at: int, flip: int) -> None:
    sealed = bytearray(envelope())
    sealed[at] ^= flip
    with pytest.raises(ProtocolError, match="envelope failed to open"):
        open_envelope(bytes(32), b"s" * 32, "brno", "cluj", bytes(sealed))


def test_both_directions_of_a_pair_have_keys_of_their_own() -> None:
    """One plaintext both ways: were the key stream the same, so would be the ciphertext."""
    assert envelope()[:70] != envelope(sender="cluj", receiver="brno")[:70]


def test_an_envelope_of_another_size_or_content_is_refused() -> None:
    for wrong in (b"", envelope()[:-1], envelope() + b"\0"):
        with pytest.raises(ProtocolError, match="envelope failed to open"):
            open_envelope(bytes(32), b"s" * 32, "brno", "cluj", wrong)
    material = derive(bytes(32), b"s" * 32, b"envelope", "brno", "cluj", length=44)
    context = b"s" * 32 + b"\0brno\0cluj"
    for content, message in ((bytes(70), "out of range"), (Share(3, 5).to_bytes() * 2 + b"\0", "35 bytes, not 36")):
        sealed = AESGCM(material[:32]).encrypt(material[32:], content, context)
        with pytest.raises(ProtocolError, match=message):
            open_envelope(bytes(32), b"s" * 32, "brno", "cluj", sealed)
