from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.secagg.recovery import MAX_TRIES, reconstruct
from fedseg.secagg.shamir import PRIME, Share, combine, split

from . import textbook
from .helpers import entropy

SECRET = bytes(range(32))


def test_the_modulus_is_prime() -> None:
    """Miller-Rabin for a fixed set of bases; and the design's value."""
    assert PRIME == 2**256 + 297
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        powers = [pow(base, odd * 2**k, PRIME) for k in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers


@settings(max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 12), st.data())
def test_any_t_shares_in_any_order_give_the_secret_back(secret: bytes, t: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(t, 15))
    shares = split(secret, t, n, entropy(secret))
    chosen = data.draw(st.permutations(shares))[: data.draw(st.integers(t, n))]
    assert combine(chosen, t) == secret
    assert [share.index for share in shares] == list(range(1, n + 1))


def of_numbers(*coefficients: int) -> Callable[[int], bytes]:
    left = list(coefficients)
    return lambda size: left.pop(0).to_bytes(size, "big")


@pytest.mark.parametrize(
    ("secret", "coefficients", "values"),
    [
        (5, (7, 11), [23, 63, 125, 209]),
        (5, (PRIME + 7, 3 * PRIME + 11), [23, 63, 125, 209]),
        (9, (PRIME - 1,), [8, 7, 6, 5]),
        (1, (PRIME - 1, 0, 1), [1, 7, 25, 61]),
        (0, (1,), [1, 2, 3, 4]),
        (2, (PRIME - 3,), [PRIME - 1, PRIME - 4, PRIME - 7, PRIME - 10]),
    ],
)
def test_a_polynomial_by_hand(secret: int, coefficients: tuple[int, ...], values: list[int]) -> None:
    """5 + 7x + 11x^2 is 23, 63, 125, 209; then the same of larger draws; 9 - x; 1 - x + x^3; x; 2 - 3x."""
    t, data = len(coefficients) + 1, secret.to_bytes(32, "big")
    shares = split(data, t, 4, of_numbers(*coefficients))
    assert shares == tuple(Share(place + 1, value) for place, value in enumerate(values))
    assert all(combine(chosen, t) == data for chosen in combinations(shares, t))


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 8), st.data())
def test_shares_are_those_of_another_implementation(secret: bytes, t: int, data: st.DataObject) -> None:
    drawn = [data.draw(st.binary(min_size=48, max_size=48)) for _ in range(t - 1)]
    left, n = list(drawn), t + 2
    shares = split(secret, t, n, lambda _: left.pop(0))
    assert {share.index: share.to_bytes() for share in shares} == textbook.shamir_split(secret, drawn, n)
    assert textbook.shamir_combine(share.to_bytes() for share in shares[-t:]) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_ends_of_the_range_survive(secret: bytes) -> None:
    assert combine(split(secret, 3, 4, entropy())[1:], 3) == secret


def test_the_most_holders_that_two_bytes_of_index_can_tell_apart() -> None:
    shares = split(SECRET, 2, 65_535, entropy())
    assert combine([shares[0], shares[-1]], 2) == SECRET
    assert Share.from_bytes(shares[-1].to_bytes()).index == 65_535
    with pytest.raises(ProtocolError, match="cannot share among 65536 with threshold 2"):
        split(SECRET, 2, 65_536, entropy())
    for index in (0, 65_536):
        with pytest.raises(ProtocolError, match="out of range"):
            Share(index, 1)


def test_fewer_than_t_shares_fit_every_secret() -> None:
    """For t - 1 shares and any other secret there is exactly one polynomial: here it is, by interpolation."""
    shares = split(SECRET, 3, 5, entropy())
    (x1, y1), (x2, y2) = ((share.index, share.value) for share in shares[:2])
    for other in (bytes(32), b"\x01" * 32, b"\xff" * 32):
        secret = int.from_bytes(other, "big")
        a, b = (y1 - secret) * pow(x1, -1, PRIME), (y2 - secret) * pow(x2, -1, PRIME)
        quadratic = (a - b) * pow(x1 - x2, -1, PRIME) % PRIME
        linear = (a - quadratic * x1) % PRIME
        third = Share(3, (secret + 3 * linear + 9 * quadratic) % PRIME)
        assert combine([*shares[:2], third], 3) == other


def test_wrong_sharing_is_refused() -> None:
    for t, n in ((1, 3), (0, 3), (4, 3)):
        with pytest.raises(ProtocolError, match=f"cannot share among {n} with threshold {t}"):
            split(SECRET, t, n, entropy())
    with pytest.raises(ProtocolError, match="a shared secret has 32 bytes, not 31"):
        split(SECRET[:31], 2, 3, entropy())
    with pytest.raises(ProtocolError, match="gave 1 bytes instead of 48"):
        split(SECRET, 2, 3, lambda _: b"x")


def test_wrong_combining_is_refused() -> None:
    shares = split(SECRET, 3, 5, entropy())
    with pytest.raises(ProtocolError, match="2 shares cannot give back a secret of threshold 3"):
        combine(shares[:2], 3)
    with pytest.raises(ProtocolError, match="one index is among the shares twice"):
        combine([shares[0], shares[0], shares[1]], 3)
    with pytest.raises(ProtocolError, match="threshold 1"):
        combine(shares, 1)
    beyond = Share(1, 2**256), Share(2, 2**256)
    with pytest.raises(ProtocolError, match="the shares do not belong together"):
        combine(beyond, 2)


def test_shares_are_fixed_width_canonical_and_keep_their_value_out_of_reprs() -> None:
    share = Share(2, PRIME - 1)
    assert len(share.to_bytes()) == 35
    assert Share.from_bytes(share.to_bytes()) == share
    assert str(PRIME - 1) not in repr(share)
    for wrong in (b"", bytes(34), bytes(36)):
        with pytest.raises(ProtocolError, match="a secret share has 35 bytes"):
            Share.from_bytes(wrong)
    for wrong in (bytes(35), b"\0\1" + PRIME.to_bytes(33, "big")):
        with pytest.raises(ProtocolError, match="out of range"):
            Share.from_bytes(wrong)


def lie(share: Share) -> Share:
    return Share(share.index, (share.value + 1) % PRIME)


def test_every_set_of_liars_that_leaves_t_honest_ones_is_got_around() -> None:
    shares = {f"site{share.index}": share for share in split(SECRET, 3, 6, entropy())}
    for liars in (chosen for k in range(4) for chosen in combinations(shares, k)):
        told = {name: lie(share) if name in liars else share for name, share in shares.items()}
        assert reconstruct("brno", "seed", told, 3, lambda secret: secret == SECRET) == SECRET


def test_too_many_lies_name_owner_and_responders_as_suspects() -> None:
    told = {f"site{share.index}": lie(share) for share in split(SECRET, 3, 4, entropy())}
    with pytest.raises(ProtocolError, match="the seed of brno cannot be reconstructed") as caught:
        reconstruct("brno", "seed", told, 3, lambda secret: secret == SECRET)
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in ("brno", *told))


def test_the_search_is_bounded() -> None:
    tries = 0

    def never(_: bytes) -> bool:
        nonlocal tries
        tries += 1
        return False

    shares = {f"site{share.index}": share for share in split(SECRET, 2, 20, entropy())}
    with pytest.raises(ProtocolError, match="cannot be reconstructed"):
        reconstruct("brno", "mask key", shares, 2, never)
    assert tries == MAX_TRIES
