"""The protocol a second time: slow, and sharing no line with `fedseg`.

Written from Bonawitz et al. 2017 (CCS), Figure 4 with its parts for an active server, in the paper's letters: a user u
has an encryption key c_u, a key s_u for its pair masks and a seed b_u for its own mask; U1, U2, U3, U4, U5 are those
who finished each round. How the bytes lie on the wire, which neither the paper nor a standard says, is the project's
own choice and stands here once more.

`run` takes all that is private in a session and gives every byte that leaves anybody.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from .textbook import (
    counter_mode,
    ed25519_public,
    ed25519_sign,
    ed25519_verify,
    gcm_crypt,
    gcm_tag,
    hkdf,
    shamir_combine,
    shamir_split,
    x25519,
    x25519_public,
)

RING = 2**32
DOMAIN = b"fedseg/secagg/v1/"


def require(holds: bool, what: str) -> None:
    """The checks of Figure 4: whoever finds one failing aborts."""
    if not holds:
        raise ValueError(what)


def prg(key: bytes, count: int) -> list[int]:
    """The mask: words of AES-256 in counter mode from zero."""
    return list(struct.unpack(f"<{count}I", counter_mode(key, 0, 4 * count)))


def text(value: str) -> bytes:
    return struct.pack(">H", len(value.encode())) + value.encode()


def table(entries: Mapping[str, bytes]) -> bytes:
    ordered = sorted(entries, key=str.encode)
    return struct.pack(">H", len(entries)) + b"".join(text(name) + entries[name] for name in ordered)


def names(listed: Iterable[str]) -> bytes:
    return table(dict.fromkeys(listed, b""))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def derive(secret: bytes, sid: bytes, purpose: bytes, users: Iterable[str], length: int = 32) -> bytes:
    return hkdf(secret, sid, DOMAIN + purpose + b"\0" + b"".join(map(text, users)), length)


def statement(step: str, session: bytes, user: str, content: bytes) -> bytes:
    return DOMAIN + b"signature\0" + text(step) + session + text(user) + content


def power_of_two_below(limit: Fraction) -> Fraction:
    power = Fraction(1)
    while power >= limit:
        power /= 2
    while power * 2 < limit:
        power *= 2
    return power


def words(vector: list[int]) -> bytes:
    return struct.pack(f"<{len(vector)}I", *vector)


class Setup:
    """What all parties agree on before the first round."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        self.users = sorted(case["protocol_keys"])
        n, c = len(self.users), case["c"]
        self.plain = case["plain"]
        self.t = 0 if self.plain else (n + c) // 2 + 1
        self.m = 1 if self.plain else 2 if case["accept_two"] else max(3, c + 2)
        if (case["quorum"] or 0) > max(self.t, self.m):
            self.m = case["quorum"]
        self.keys = {u: ed25519_public(bytes.fromhex(key)) for u, key in case["protocol_keys"].items()}
        self.length = case["dimension"] + 1 + 2 * case["scored"]
        room = Fraction(2**31, n) - 1
        self.scale = power_of_two_below(room / (case["weight_max"] * Fraction(case["clip"]) * (1 + Fraction(1, 2**20))))
        self.weight_scale = power_of_two_below(Fraction(2**31, n * case["weight_max"]))
        self.score_scale = power_of_two_below(Fraction(2**31, n))
        plan_hash, model_hash = bytes.fromhex(case["plan_hash"]), bytes.fromhex(case["model_hash"])
        server_key = ed25519_public(bytes.fromhex(case["server_key"]))
        self.roster = DOMAIN + b"roster\0" + text(case["study"]) + plan_hash + server_key + table(self.keys)
        self.fingerprint = sha256(DOMAIN + b"roster\0fingerprint\0" + self.roster)
        self.header = b"".join(
            (
                DOMAIN + b"header\0" + text(case["study"]) + plan_hash,
                struct.pack(">IB", case["round"], case["attempt"]) + model_hash,
                struct.pack(">IBdd", case["dimension"], 32, float(self.scale), case["clip"]),
                struct.pack(">IB", case["weight_max"], case["scored"]),
                names(self.users) + self.fingerprint,
                struct.pack(">HHH", c, self.t, self.m),
            )
        )
        self.sid0 = sha256(DOMAIN + b"sid0\0" + self.header)

    def index(self, user: str) -> int:
        return self.users.index(user) + 1

    def verify(self, step: str, session: bytes, user: str, content: bytes, signature: bytes) -> None:
        signed = ed25519_verify(self.keys[user], statement(step, session, user, content), signature)
        require(signed, f"{user} did not sign {step}")

    def digest(self, session: bytes, user: str, others: Iterable[str], vector: list[int]) -> bytes:
        prefix = DOMAIN + b"input\0" + session + text(user) + names(others)
        return sha256(prefix + struct.pack(">I", len(vector)) + words(vector))


def encode(setup: Setup, case: Mapping[str, Any], user: str) -> list[int]:
    """x_u: stochastic rounding by a stream that is no secret, then the weight, the score and whether there is one."""
    update, weight, score = case["updates"][user], case["weights"][user], case["scores"].get(user)
    norm = math.sqrt(sum(value * value for value in update))
    gain = weight * min(1.0, case["clip"] / norm) * float(setup.scale)
    seed = sha256(f"fedseg/secagg/v1/rounding\0{case['plan_seed']}\0{case['round']}\0{user}".encode())
    drawn = prg(seed, len(update))
    x = [math.floor(value * gain + word / RING) for value, word in zip(update, drawn, strict=True)]
    x.append(weight * int(setup.weight_scale))
    if case["scored"]:
        x += [0, 0] if score is None else [round(score * int(setup.score_scale)), int(setup.score_scale)]
    return [value % RING for value in x]


class User:
    """One user of Figure 4, with what only it knows."""

    def __init__(self, setup: Setup, name: str, protocol_key: bytes, draws: list[bytes], x: list[int]) -> None:
        self.setup, self.name, self._protocol_key, self._draws, self._x = setup, name, protocol_key, draws, x

    def _sign(self, step: str, session: bytes, content: bytes) -> bytes:
        return ed25519_sign(self._protocol_key, statement(step, session, self.name, content))

    def round_0(self) -> bytes:
        """AdvertiseKeys."""
        self._c, self._s, self._b = (self._draws.pop(0) for _ in range(3))
        commitment = sha256(DOMAIN + b"seed\0" + self.setup.sid0 + self.name.encode() + b"\0" + self._b)
        content = x25519_public(self._c) + x25519_public(self._s) + commitment
        return content + self._sign("AdvertiseKeys", self.setup.sid0, content)

    def round_1(self, u1: Mapping[str, bytes]) -> dict[str, bytes]:
        """ShareKeys: `u1` is (c_v, s_v, commitment, signature) by v."""
        for v, data in u1.items():
            self.setup.verify("AdvertiseKeys", self.setup.sid0, v, data[:96], data[96:])
        require(len({data[at : at + 32] for data in u1.values() for at in (0, 32)}) == 2 * len(u1), "repeated keys")
        require(len(u1) >= max(self.setup.t, self.setup.m), "|U1| < t")
        self._u1 = dict(u1)
        self.sid = session_name(self.setup, u1)
        t, n = self.setup.t, len(self.setup.users)
        b_shares = shamir_split(self._b, [self._draws.pop(0) for _ in range(t - 1)], n)
        s_shares = shamir_split(self._s, [self._draws.pop(0) for _ in range(t - 1)], n)
        pairs = {v: b_shares[self.setup.index(v)] + s_shares[self.setup.index(v)] for v in self.setup.users}
        self._held = {self.name: pairs[self.name]}
        return {v: self._seal(v, pairs[v]) for v in u1 if v != self.name}

    def _envelope(self, u: str, v: str) -> tuple[bytes, bytes, bytes]:
        peer = v if u == self.name else u
        material = derive(x25519(self._c, self._u1[peer][:32]), self.sid, b"envelope", (u, v), 44)
        return material[:32], material[32:], self.sid + b"\0" + u.encode() + b"\0" + v.encode()

    def _seal(self, v: str, shares: bytes) -> bytes:
        key, nonce, context = self._envelope(self.name, v)
        sealed = gcm_crypt(key, nonce, shares)
        return sealed + gcm_tag(key, nonce, sealed, context)

    def _open(self, v: str, envelope: bytes) -> bytes:
        key, nonce, context = self._envelope(v, self.name)
        require(gcm_tag(key, nonce, envelope[:-16], context) == envelope[-16:], "no envelope of this session")
        return gcm_crypt(key, nonce, envelope[:-16])

    def round_2(self, envelopes: Mapping[str, bytes]) -> tuple[list[int], bytes, bytes]:
        """MaskedInputCollection: `envelopes` come from the others of U2."""
        self._u2 = {self.name, *envelopes}
        require(self._u2 <= set(self._u1) and len(self._u2) >= max(self.setup.t, self.setup.m), "U2")
        self._held |= {v: self._open(v, envelope) for v, envelope in envelopes.items()}
        y = [a + b for a, b in zip(self._x, prg(own_mask(self._b, self.sid, self.name), len(self._x)), strict=True)]
        for v in envelopes:
            delta = 1 if self.name < v else -1
            mask = prg(pair_mask(self._s, self._u1[v][32:64], self.sid, self.name, v), len(y))
            y = [a + delta * b for a, b in zip(y, mask, strict=True)]
        y = [value % RING for value in y]
        digest = self.setup.digest(self.sid, self.name, self._u2, y)
        return y, digest, self._sign("MaskedInputCollection", self.sid, digest)

    def round_3(self, u3: Iterable[str]) -> bytes:
        """ConsistencyCheck."""
        self._u3 = set(u3)
        require(self._u3 <= self._u2 and len(self._u3) >= max(self.setup.t, self.setup.m), "U3")
        return self._sign("ConsistencyCheck", self.sid, names(self._u2) + names(self._u3))

    def round_4(self, u4: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes], bytes]:
        """Unmasking: `u4` is the signatures of the round before."""
        require(set(u4) <= self._u3 and len(u4) >= self.setup.t, "U4")
        for v, signature in u4.items():
            self.setup.verify("ConsistencyCheck", self.sid, v, names(self._u2) + names(self._u3), signature)
        b_shares = {v: self._held[v][:35] for v in self._u3}
        s_shares = {v: self._held[v][35:] for v in self._u2 - self._u3}
        return b_shares, s_shares, self._sign("Unmasking", self.sid, table(b_shares) + table(s_shares))


def session_name(setup: Setup, u1: Mapping[str, bytes]) -> bytes:
    framed = b""
    for v in sorted(u1):
        message = advertisement(v, u1[v])
        framed += struct.pack(">I", len(message)) + message
    return sha256(DOMAIN + b"sid\0" + setup.sid0 + framed)


def advertisement(user: str, content: bytes) -> bytes:
    return DOMAIN + b"advertisement\0" + text(user) + content


def own_mask(b: bytes, sid: bytes, user: str) -> bytes:
    return derive(b, sid, b"self-mask", (user,))


def pair_mask(s: bytes, peer_key: bytes, sid: bytes, user: str, peer: str) -> bytes:
    return derive(x25519(s, peer_key), sid, b"pair-mask", sorted((user, peer)))


def unmask(setup: Setup, u1: Mapping[str, bytes], u2: set[str], ys: Mapping[str, list[int]], u5: Any) -> list[int]:
    """The server's last step: from what it was sent alone."""
    sid, u3 = session_name(setup, u1), set(ys)
    require(len(u5) >= setup.t, "|U5| < t")
    z = [sum(column) for column in zip(*ys.values(), strict=True)]
    chosen = sorted(u5)[-setup.t :]
    for u in u3:
        b = shamir_combine(u5[v][0][u] for v in chosen)
        z = [a - mask for a, mask in zip(z, prg(own_mask(b, sid, u), setup.length), strict=True)]
    for v in u2 - u3:
        s = shamir_combine(u5[u][1][v] for u in chosen)
        for u in u3:
            mask = prg(pair_mask(s, u1[u][32:64], sid, u, v), setup.length)
            z = [a - (word if u < v else -word) for a, word in zip(z, mask, strict=True)]
    return [value % RING for value in z]


def run(case: Mapping[str, Any]) -> dict[str, Any]:
    """Every byte of a session, from `private` of a frozen case."""
    setup = Setup(case)
    inputs = {user: encode(setup, case, user) for user in sorted(case["updates"])}
    public = {
        "roster": setup.roster.hex(),
        "fingerprint": setup.fingerprint.hex(),
        "header": setup.header.hex(),
        "sid0": setup.sid0.hex(),
        "inputs": inputs,
    }
    return public | (_run_plain if setup.plain else _run_masked)(setup, case, inputs)


def _run_plain(setup: Setup, case: Mapping[str, Any], inputs: Mapping[str, list[int]]) -> dict[str, Any]:
    messages = {}
    for user, x in inputs.items():
        digest = setup.digest(setup.sid0, user, inputs, x)
        key = bytes.fromhex(case["protocol_keys"][user])
        signature = ed25519_sign(key, statement("MaskedInputCollection", setup.sid0, user, digest))
        messages[user] = (DOMAIN + b"masked-input\0" + text(user) + digest + signature).hex()
    total = [sum(column) % RING for column in zip(*inputs.values(), strict=True)]
    return {"masked_inputs": messages, "u3": sorted(inputs), "total": total}


def _run_masked(setup: Setup, case: Mapping[str, Any], inputs: Mapping[str, list[int]]) -> dict[str, Any]:
    users = {
        user: User(setup, user, bytes.fromhex(case["protocol_keys"][user]), _bytes(case["draws"][user]), inputs[user])
        for user in inputs
    }

    def answering(those: Iterable[str], step: str) -> list[str]:
        return [user for user in sorted(those) if case["lost_at"].get(user) != step]

    u1 = {u: users[u].round_0() for u in answering(users, "AdvertiseKeys")}
    envelopes = {u: users[u].round_1(u1) for u in answering(u1, "ShareKeys")}
    u2 = set(envelopes)
    third = {
        u: users[u].round_2({v: envelopes[v][u] for v in u2 - {u}}) for u in answering(u2, "MaskedInputCollection")
    }
    signatures = {u: users[u].round_3(third) for u in answering(third, "ConsistencyCheck")}
    u5 = {u: users[u].round_4(signatures) for u in answering(signatures, "Unmasking")}

    def wire(tag: bytes, contents: Mapping[str, Any], content: Callable[[Any], bytes]) -> dict[str, str]:
        return {u: (DOMAIN + tag + b"\0" + text(u) + content(contents[u])).hex() for u in sorted(contents)}

    return {
        "advertisements": {u: advertisement(u, u1[u]).hex() for u in sorted(u1)},
        "sid": session_name(setup, u1).hex(),
        "envelopes": wire(b"envelopes", envelopes, table),
        "masked": {u: third[u][0] for u in sorted(third)},
        "masked_inputs": wire(b"masked-input", third, lambda each: each[1] + each[2]),
        "u3": sorted(third),
        "consistency": wire(b"consistency", signatures, bytes),
        "shares": wire(b"shares", u5, lambda each: table(each[0]) + table(each[1]) + each[2]),
        "total": unmask(setup, u1, u2, {u: each[0] for u, each in third.items()}, u5),
    }


def _bytes(drawn: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(each) for each in drawn]
