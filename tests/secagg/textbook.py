"""The standards' primitives a second time, from their texts: slow, sharing no line with `fedseg`, and not safe to use.

X25519 (RFC 7748), Ed25519 (RFC 8032), HKDF (RFC 5869), GCM (SP 800-38D) and Shamir's sharing by Python's integers;
AES's block, SHA-2 and HMAC are those of libraries. `test_primitives` holds each to its standard's known answers.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from collections.abc import Iterable
from fractions import Fraction

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

P = 2**255 - 19
SHAMIR_PRIME = 2**256 + 297


# RFC 7748, section 5


def x25519(scalar: bytes, point: bytes) -> bytes:
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    x1 = int.from_bytes(point, "little") % 2**255 % P
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        plus, minus = (x2 + z2) % P, (x2 - z2) % P
        square, other = plus * plus % P, minus * minus % P
        da, cb = (x3 - z3) * plus % P, (x3 + z3) * minus % P
        x3, z3 = pow(da + cb, 2, P), x1 * pow(da - cb, 2, P) % P
        e = square - other
        x2, z2 = square * other % P, e * (square + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def x25519_public(scalar: bytes) -> bytes:
    return x25519(scalar, (9).to_bytes(32, "little"))


# RFC 8032, section 5.1, in its extended coordinates (X, Y, Z, T): x = X / Z, y = Y / Z, x * y = T / Z

Point = tuple[int, int, int, int]
D = -121665 * pow(121666, -1, P) % P
L = 2**252 + 27742317777372353535851937790883648493
NEUTRAL: Point = (0, 1, 1, 0)


def point(x: int, y: int) -> Point:
    return x, y, 1, x * y % P


def add(one: Point, two: Point) -> Point:
    a = (one[1] - one[0]) * (two[1] - two[0]) % P
    b = (one[1] + one[0]) * (two[1] + two[0]) % P
    c, d = 2 * one[3] * two[3] * D % P, 2 * one[2] * two[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(k: int, base: Point) -> Point:
    result = NEUTRAL
    while k:
        if k & 1:
            result = add(result, base)
        base, k = add(base, base), k >> 1
    return result


def compress(place: Point) -> bytes:
    inverse = pow(place[2], -1, P)
    x, y = place[0] * inverse % P, place[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decompress(data: bytes) -> Point:
    y, odd = int.from_bytes(data, "little") % 2**255, data[31] >> 7
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or x * x % P != square or (x == 0 and odd):
        raise ValueError("no point of the curve")
    return point(x if x & 1 == odd else P - x, y)


BASE = decompress((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def ed25519_expand(private: bytes) -> tuple[int, bytes]:
    h = hashlib.sha512(private).digest()
    return int.from_bytes(h[:32], "little") & ~7 & ~(1 << 255) | 1 << 254, h[32:]


def ed25519_public(private: bytes) -> bytes:
    return compress(times(ed25519_expand(private)[0], BASE))


def ed25519_sign(private: bytes, message: bytes) -> bytes:
    a, prefix = ed25519_expand(private)
    public = compress(times(a, BASE))
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    nonce = compress(times(r, BASE))
    k = int.from_bytes(hashlib.sha512(nonce + public + message).digest(), "little") % L
    return nonce + ((r + k * a) % L).to_bytes(32, "little")


def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bool:
    s = int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    right = add(decompress(signature[:32]), times(k, decompress(public)))
    return s < L and compress(times(s, BASE)) == compress(right)


# RFC 5869; SP 800-38A and 800-38D


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    key = hmac.digest(salt, secret, "sha256")
    block, out = b"", b""
    for count in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([count]), "sha256")
        out += block
    return out[:length]


def aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(block)


def counter_mode(key: bytes, first: int, length: int) -> bytes:
    blocks = (aes(key, (first + i).to_bytes(16, "big")) for i in range(-(-length // 16)))
    return b"".join(blocks)[:length]


def gf_multiply(x: int, y: int) -> int:
    z = 0
    for i in range(128):
        if x >> (127 - i) & 1:
            z ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return z


def gcm_tag(key: bytes, nonce: bytes, sealed: bytes, context: bytes) -> bytes:
    h, y = int.from_bytes(aes(key, bytes(16)), "big"), 0
    padded = [data + bytes(-len(data) % 16) for data in (context, sealed)]
    blocks = b"".join(padded) + struct.pack(">QQ", 8 * len(context), 8 * len(sealed))
    for at in range(0, len(blocks), 16):
        y = gf_multiply(y ^ int.from_bytes(blocks[at : at + 16], "big"), h)
    return (y ^ int.from_bytes(aes(key, nonce + b"\0\0\0\1"), "big")).to_bytes(16, "big")


def gcm_crypt(key: bytes, nonce: bytes, data: bytes) -> bytes:
    stream = counter_mode(key, int.from_bytes(nonce + b"\0\0\0\2", "big"), len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


# Shamir 1979


def shamir_split(secret: bytes, coefficients: list[bytes], n: int) -> dict[int, bytes]:
    polynomial = [int.from_bytes(part, "big") % SHAMIR_PRIME for part in (secret, *coefficients)]
    values = {x: sum(a * x**power for power, a in enumerate(polynomial)) % SHAMIR_PRIME for x in range(1, n + 1)}
    return {x: x.to_bytes(2, "big") + value.to_bytes(33, "big") for x, value in values.items()}


def shamir_combine(shares: Iterable[bytes]) -> bytes:
    points = [(int.from_bytes(share[:2], "big"), int.from_bytes(share[2:], "big")) for share in shares]
    total = Fraction(0)
    for x, y in points:
        total += y * math.prod((Fraction(-other, x - other) for other, _ in points if other != x), start=Fraction(1))
    return (total.numerator * pow(total.denominator, -1, SHAMIR_PRIME) % SHAMIR_PRIME).to_bytes(32, "big")
