"""Known answers: what the standards print comes out of the very functions that the protocol calls."""

from __future__ import annotations

import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.secagg.masking import PIECE, add_mask, derive, keystream, pair_mask_key, pair_sign, self_mask_key
from fedseg.secagg.sealing import agree, check_public_key, open_envelope, public_key, seal
from fedseg.secagg.shamir import Share

X25519_RFC_7748_5_2 = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]
# Wycheproof's small-order points on curve and twist, in canonical spelling.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
SECOND_SPELLINGS = [
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1ccc",
]


@pytest.mark.parametrize(("scalar", "point", "answer"), X25519_RFC_7748_5_2)
def test_x25519_rfc_7748_section_5_2(scalar: str, point: str, answer: str) -> None:
    assert agree(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == answer


def test_x25519_rfc_7748_section_6_1() -> None:
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert agree(bob, alice_public).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    check_public_key(alice_public)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="low order"):
        check_public_key(bytes.fromhex(point))
    with pytest.raises(ProtocolError, match="low order"):
        agree(bytes(range(32)), bytes.fromhex(point))


@pytest.mark.parametrize("point", SECOND_SPELLINGS)
def test_a_second_spelling_of_a_point_is_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="not in canonical form"):
        check_public_key(bytes.fromhex(point))


def test_hkdf_rfc_5869_case_1_and_derive_by_hand() -> None:
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    known = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert HKDF(SHA256(), 42, salt, info).derive(b"\x0b" * 22).hex() == known
    extracted = hmac.digest(b"sid", b"secret", "sha256")
    info = b"fedseg/secagg/v1/pair-mask\0" + b"\0\x05dakar" + b"\0\x03fez"
    assert derive(b"secret", b"sid", b"pair-mask", "dakar", "fez") == hmac.digest(extracted, info + b"\1", "sha256")


def test_ctr_sp_800_38a_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(range(0xF0, 0x100)))).encryptor()
    plain = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    assert encryptor.update(bytes.fromhex(plain)).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    )


def test_keystream_is_aes_256_of_the_counter() -> None:
    """The GCM specification's cases 13 and 14 print AES-256 under the zero key of the counters 0, 1 and 2."""
    known = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"
    ((where, words),) = list(keystream(bytes(32), 12))
    assert (where, words.tobytes().hex()) == (slice(0, 12), known)


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
