from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.secagg.recovery import MAX_TRIES, reconstruct
from fedseg.secagg.shamir import PRIME, Share, combine, split

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


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(2, 12), st.data())
def test_any_t_shares_in_any_order_give_the_secret_back(secret: bytes, t: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(t, 15))
    shares = split(secret, t, n, entropy(secret))
    chosen = data.draw(st.permutations(shares))[: data.draw(st.integers(t, n))]
    assert combine(chosen, t) == secret
    assert [share.index for share in shares] == list(range(1, n + 1))


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_ends_of_the_range_survive(secret: bytes) -> None:
    assert combine(split(secret, 3, 4, entropy())[1:], 3) == secret


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
