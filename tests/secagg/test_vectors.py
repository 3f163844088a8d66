"""Three accounts of one protocol: `fedseg`, the slow one of `paper`, and the bytes that were frozen once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.roster import Roster

from . import paper, vectors

FROZEN = json.loads((Path(__file__).parents[1] / "vectors" / "secagg.json").read_text())
LOST = FROZEN["one is lost after ShareKeys"]


@pytest.mark.parametrize("name", FROZEN)
def test_fedseg_speaks_the_frozen_protocol_to_the_bit(name: str) -> None:
    assert vectors.public(FROZEN[name]["private"]) == FROZEN[name]["public"]


@pytest.mark.parametrize("name", FROZEN)
def test_an_implementation_from_the_paper_speaks_it_too(name: str) -> None:
    assert paper.run(FROZEN[name]["private"]) == FROZEN[name]["public"]


def test_the_frozen_cases_are_the_ones_listed() -> None:
    assert {name: case["private"] for name, case in FROZEN.items()} == vectors.CASES


@pytest.mark.parametrize("name", FROZEN)
def test_the_frozen_total_is_the_sum_of_the_frozen_inputs(name: str) -> None:
    public = FROZEN[name]["public"]
    columns = zip(*(public["inputs"][site] for site in public["u3"]), strict=True)
    assert [sum(column) % 2**32 for column in columns] == public["total"]


def test_every_loss_has_a_case() -> None:
    lost = {phase for case in FROZEN.values() for phase in case["private"]["lost_at"].values()}
    assert lost == {"AdvertiseKeys", "ShareKeys", "MaskedInputCollection", "ConsistencyCheck", "Unmasking"}
    answers = [Shares.from_bytes(bytes.fromhex(data)) for data in LOST["public"]["shares"].values()]
    assert [set(shares.key_shares) for shares in answers] == [{"orléans"}] * 3


KINDS: dict[str, Any] = {
    "advertisements": Advertisement,
    "envelopes": Envelopes,
    "masked_inputs": MaskedInput,
    "consistency": Consistency,
    "shares": Shares,
}


@pytest.mark.parametrize("name", FROZEN)
def test_every_frozen_message_is_read_back_as_itself(name: str) -> None:
    public = FROZEN[name]["public"]
    assert Roster.from_bytes(bytes.fromhex(public["roster"])).to_bytes().hex() == public["roster"]
    assert SessionHeader.from_bytes(bytes.fromhex(public["header"])).to_bytes().hex() == public["header"]
    for field in KINDS.keys() & public.keys():
        for site, data in public[field].items():
            message = KINDS[field].from_bytes(bytes.fromhex(data))
            assert (message.site, message.to_bytes().hex()) == (site, data)


def test_a_frozen_masked_input_is_what_openssl_makes_of_the_frozen_keys() -> None:
    """One masked input taken apart with `cryptography` alone."""
    private, public = LOST["private"], LOST["public"]
    sid, (_, mask_key, seed) = bytes.fromhex(public["sid"]), map(bytes.fromhex, private["draws"]["brno"][:3])

    def stream(secret: bytes, purpose: str, *names: str) -> list[int]:
        info = f"fedseg/secagg/v1/{purpose}\0".encode() + b"".join(
            len(name.encode()).to_bytes(2, "big") + name.encode() for name in names
        )
        key = HKDF(SHA256(), 32, sid, info).derive(secret)
        data = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(28))
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, 28, 4)]

    y = public["masked"]["brno"]
    y = [value - mask for value, mask in zip(y, stream(seed, "self-mask", "brno"), strict=True)]
    for peer, sign in (("a", 1), ("ghent", -1), ("orléans", -1)):
        key = bytes.fromhex(public["advertisements"][peer])[-128:-96]
        agreed = X25519PrivateKey.from_private_bytes(mask_key).exchange(X25519PublicKey.from_public_bytes(key))
        mask = stream(agreed, "pair-mask", *sorted(("brno", peer)))
        y = [value + sign * word for value, word in zip(y, mask, strict=True)]
    assert [value % 2**32 for value in y] == public["inputs"]["brno"]


@pytest.mark.parametrize("where", ["advertisements", "consistency", "envelopes"])
def test_the_second_implementation_checks_what_it_is_sent(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that agrees with everything would prove nothing: each false byte stops it."""
    rounds = {"advertisements": "round_0", "consistency": "round_3", "envelopes": "round_1"}
    honest = getattr(paper.User, rounds[where])

    def false(user: paper.User, *received: Any) -> Any:
        answer = honest(user, *received)
        if isinstance(answer, dict):
            return {peer: envelope[:-1] + bytes([envelope[-1] ^ 1]) for peer, envelope in answer.items()}
        return answer[:-1] + bytes([answer[-1] ^ 1])

    monkeypatch.setattr(paper.User, rounds[where], false)
    with pytest.raises(ValueError, match=r"did not sign|no envelope of this session"):
        paper.run(LOST["private"])
