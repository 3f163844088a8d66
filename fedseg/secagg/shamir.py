"""Shamir's secret sharing (1979) of 32 bytes over the prime field of p = 2^256 + 297.

The field is the smallest above 2^256, so every 32 bytes are a secret and none needs to be drawn again.
Python's integers don't run in constant time; a site shares only secrets that live for one session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedseg.errors import ProtocolError

PRIME = 2**256 + 297
SECRET_SIZE = 32
SHARE_SIZE = 2 + 33
MAX_INDEX = 65_535

Entropy = Callable[[int], bytes]


@dataclass(frozen=True)
class Share:
    """One point of the polynomial.

    Args:
        index: The holder's place in the sorted roster, from 1.
        value: The polynomial there, 0 <= value < p.

    Raises:
        ProtocolError: Either is out of range (index 0 would be the secret itself).
    """

    index: int
    value: int = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a point that no dealer makes."""
        if not 1 <= self.index <= MAX_INDEX or not 0 <= self.value < PRIME:
            raise ProtocolError("a secret share is out of range")

    def to_bytes(self) -> bytes:
        """Two bytes of index and 33 of value, big-endian."""
        return self.index.to_bytes(2, "big") + self.value.to_bytes(33, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> Share:
        """The share in exactly 35 bytes.

        Raises:
            ProtocolError: Another length, or a point out of range.
        """
        if len(data) != SHARE_SIZE:
            raise ProtocolError(f"a secret share has {SHARE_SIZE} bytes, not {len(data)}")
        return cls(int.from_bytes(data[:2], "big"), int.from_bytes(data[2:], "big"))


def draw(entropy: Entropy, size: int) -> bytes:
    """`size` bytes of the caller's randomness.

    Raises:
        ProtocolError: The source gave another number of bytes.
    """
    data = entropy(size)
    if len(data) != size:
        raise ProtocolError(f"the source of randomness gave {len(data)} bytes instead of {size}")
    return data


def split(secret: bytes, t: int, n: int, entropy: Entropy) -> tuple[Share, ...]:
    """`n` shares of `secret`, indices 1 to n, any `t` of which give it back and fewer tell nothing.

    Args:
        secret: 32 bytes.
        t: At least 2: with 1 each share would be the secret.
        n: At least t.
        entropy: `entropy(k)` gives k fresh random bytes; 48 a coefficient, so that its bias is below 2^-127.

    Raises:
        ProtocolError: A size or threshold out of range.
    """
    if len(secret) != SECRET_SIZE:
        raise ProtocolError(f"a shared secret has {SECRET_SIZE} bytes, not {len(secret)}")
    if not 2 <= t <= n <= MAX_INDEX:
        raise ProtocolError(f"cannot share among {n} with threshold {t}")
    drawn = [int.from_bytes(draw(entropy, 48), "big") % PRIME for _ in range(t - 1)]
    coefficients = [int.from_bytes(secret, "big"), *drawn]
    return tuple(Share(index, _evaluate(coefficients, index)) for index in range(1, n + 1))


def combine(shares: Sequence[Share], t: int) -> bytes:
    """The secret of which `shares` are shares: their first `t` are used, by Lagrange interpolation at 0.

    A wrong share gives a wrong secret, or an error: who needs to know which checks the result against a commitment.

    Raises:
        ProtocolError: Fewer than t shares, one index twice, or a result that is no 32 bytes.
    """
    if t < 2 or len(shares) < t:
        raise ProtocolError(f"{len(shares)} shares cannot give back a secret of threshold {t}")
    if len({share.index for share in shares}) != len(shares):
        raise ProtocolError("one index is among the shares twice")
    used = shares[:t]
    secret = sum(share.value * weight for share, weight in zip(used, _lagrange_at_zero(used), strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_SIZE):
        raise ProtocolError("the shares do not belong together")
    return secret.to_bytes(SECRET_SIZE, "big")


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _lagrange_at_zero(shares: Sequence[Share]) -> list[int]:
    weights = []
    for mine in shares:
        above, below = 1, 1
        for other in shares:
            if other.index != mine.index:
                above = above * other.index % PRIME
                below = below * (other.index - mine.index) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights
