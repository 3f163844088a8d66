"""Sessions small enough to run by the hundred, and randomness that is the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.site import Advertised, Masked, Shared, advertise
from fedseg.secagg.thresholds import Thresholds

Vector = NDArray[np.uint32]
NAMES = ("amiens", "brno", "cluj", "dakar", "essen", "fez", "ghent", "hanoi", "izmir", "jena")


def entropy(seed: object = 0) -> Callable[[int], bytes]:
    """A deterministic stream, never the same bytes twice."""
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}/{count}".encode()).digest(size)

    return draw


def session(
    n: int = 3, c: int | None = None, dimension: int = 5, accept_two: bool = False, **changes: object
) -> SessionHeader:
    numbers = Thresholds.of(n, c, accept_two)
    values: dict[str, object] = {
        "study": "atlas",
        "plan_hash": bytes(range(32)),
        "round": 4,
        "attempt": 1,
        "model_hash": bytes(range(32, 64)),
        "encoding": Encoding(n, 2.0, 10, dimension),
        "sites": NAMES[:n],
        "thresholds": numbers,
    }
    return SessionHeader.of(**(values | changes))  # type: ignore[arg-type]


def inputs_of(header: SessionHeader, seed: int = 0) -> dict[str, Vector]:
    draw = np.random.default_rng(seed)
    return {site: draw.integers(0, 2**32, header.length, dtype=np.uint32) for site in header.sites}


def ring_sum(vectors: list[Vector]) -> Vector:
    """The sum modulo 2^32 by Python's integers: nothing of the code under test."""
    return np.array([sum(int(v[i]) for v in vectors) % 2**32 for i in range(len(vectors[0]))], dtype=np.uint32)


def after_advertise(header: SessionHeader) -> tuple[SecureAggregator, dict[str, Advertised]]:
    server, states = SecureAggregator(header), {}
    for site in header.sites:
        states[site], message = advertise(header, site, entropy(site))
        server.advertise(message)
    return server, states


def after_share(header: SessionHeader) -> tuple[SecureAggregator, dict[str, Shared]]:
    server, states = after_advertise(header)
    u1 = server.close_advertise()
    shared = {}
    for site, state in states.items():
        shared[site], envelopes = state.share_keys(u1, entropy(site + "/share"))
        server.share(envelopes)
    return server, shared


def after_mask(
    header: SessionHeader, inputs: Mapping[str, Vector], lost: tuple[str, ...] = ()
) -> tuple[SecureAggregator, dict[str, Masked]]:
    server, states = after_share(header)
    u2 = server.close_share()
    masked = {}
    for site in u2:
        if site not in lost:
            masked[site], message, y = states[site].mask(server.envelopes_for(site), u2, inputs[site])
            server.mask(message, y)
    return server, masked
