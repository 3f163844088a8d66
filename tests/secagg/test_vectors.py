from __future__ import annotations

import json
from pathlib import Path

from fedseg.secagg.masking import self_mask_key

from .helpers import entropy
from .vectors import build

FROZEN = json.loads((Path(__file__).parents[1] / "vectors" / "secagg.json").read_text())


def test_the_protocol_is_the_frozen_one_to_the_bit() -> None:
    assert build() == FROZEN


def test_the_frozen_total_is_the_sum_of_the_frozen_inputs() -> None:
    inputs = [FROZEN["inputs"][site] for site in "abc"]
    assert [sum(column) % 2**32 for column in zip(*inputs, strict=True)] == FROZEN["total"]


def test_the_frozen_masks_are_what_openssl_makes_of_the_frozen_keys() -> None:
    """One masked input taken apart with `cryptography` alone."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    draw, sid = entropy("b"), bytes.fromhex(FROZEN["sid"])
    _, mask_key, seed = draw(32), draw(32), draw(32)

    def stream(key: bytes) -> list[int]:
        data = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(28))
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, 28, 4)]

    y = [value - mask for value, mask in zip(FROZEN["masked"]["b"], stream(self_mask_key(seed, sid, "b")), strict=True)]
    for peer, sign in (("a", 1), ("c", -1), ("d", -1)):
        public = bytes.fromhex(FROZEN["advertisements"][peer])[-64:-32]
        agreed = X25519PrivateKey.from_private_bytes(mask_key).exchange(X25519PublicKey.from_public_bytes(public))
        names = b"".join(b"\0\1" + name.encode() for name in sorted(("b", peer)))
        key = HKDF(SHA256(), 32, sid, b"fedseg/secagg/v1/pair-mask\0" + names).derive(agreed)
        y = [value + sign * mask for value, mask in zip(y, stream(key), strict=True)]
    assert [value % 2**32 for value in y] == FROZEN["inputs"]["b"]
