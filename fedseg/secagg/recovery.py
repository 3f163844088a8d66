"""A secret back from shares of which some may be lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice

from fedseg.errors import ProtocolError
from fedseg.secagg.shamir import Share, combine

MAX_TRIES = 512


def reconstruct(owner: str, what: str, shares: Mapping[str, Share], t: int, is_right: Callable[[bytes], bool]) -> bytes:
    """The secret of `owner`, from the first subset of `t` shares whose result `is_right` accepts.

    First all answers are believed, then all but one, then all but two: one liar among r responders is found within
    r + 1 tries. A lying responder can't be told from an owner who dealt false shares, so an error names them all.

    Args:
        owner: Whose secret it is.
        what: Its kind, for the error.
        shares: By responder.
        t: Shares that reconstruct.
        is_right: Compares a candidate with what the owner advertised.

    Raises:
        ProtocolError: No subset gives it, or none of the first 512.
    """
    for responders in islice(_subsets(tuple(shares), t), MAX_TRIES):
        secret = _attempt([shares[name] for name in responders], t)
        if secret is not None and is_right(secret):
            return secret
    raise ProtocolError(
        f"the {what} of {owner} cannot be reconstructed",
        where="Unmasking",
        hint=f"{owner} dealt false shares, or one of {', '.join(sorted(shares))} returned one: all are suspects",
    )


def _subsets(names: tuple[str, ...], t: int) -> Iterator[tuple[str, ...]]:
    for left_out in range(len(names) - t + 1):
        for liars in combinations(names, left_out):
            yield tuple(name for name in names if name not in liars)[:t]


def _attempt(shares: list[Share], t: int) -> bytes | None:
    try:
        return combine(shares, t)
    except ProtocolError:
        return None
