"""The whole protocol in one function: start reading here.

n sites hold vectors; the server learns their sum and nothing else. Each site adds to its vector

- one mask with every other site, which cancels in the sum (one of the two adds it, the other subtracts it), and
- one mask of its own, so that a vector which arrives late, when its pair masks have been given away, stays hidden.

Every site shares its two secrets (the seed of its own mask, the key of its pair masks) among all, so that any t sites
can give back one of them: the seed if its vector is in the sum, the key if it dropped out before. Never both: before a
site gives anything back, at least t sites have signed one and the same list of those whose vectors are in the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.messages import Phase, SessionHeader
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.shamir import Entropy
from fedseg.secagg.site import advertise


def aggregate(
    header: SessionHeader,
    roster: Roster,
    keys: Mapping[str, bytes],
    inputs: Mapping[str, NDArray[np.uint32]],
    entropy: Entropy,
    lost_at: Mapping[str, Phase] | None = None,
) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
    """Sum the inputs of the sites that last long enough.

    Args:
        header: The session; its roster may name sites that have no input (absent ones).
        roster: Names and public keys, which every site has pinned.
        keys: The sites' private Ed25519 keys.
        inputs: uint32[length] by site.
        entropy: `entropy(k)` gives k fresh random bytes.
        lost_at: For a site that drops out, the first phase in which it no longer answers.

    Returns:
        The sum modulo 2^32, and U3: whose inputs are in it.

    Raises:
        BelowQuorum: Too few sites were left in a phase.
    """
    server = SecureAggregator(header, roster)
    advertised, shared, masked, signed = {}, {}, {}, {}

    def answering(sites: Iterable[str], phase: Phase) -> list[str]:
        return [site for site in sites if (lost_at or {}).get(site) is not phase]

    for site in answering(inputs, Phase.ADVERTISE_KEYS):
        advertised[site] = advertise(header, Identity(site, keys[site], roster), entropy)
        server.advertise(advertised[site].message)
    u1 = server.close_advertise()

    for site in answering(advertised, Phase.SHARE_KEYS):
        shared[site] = advertised[site].share_keys(u1, entropy)
        server.share(shared[site].message)
    u2 = server.close_share()

    for site in answering(shared, Phase.MASKED_INPUT):
        masked[site], y = shared[site].mask(server.envelopes_for(site), u2, inputs[site])
        server.mask(masked[site].message, y)
    u3 = server.close_mask()

    for site in answering(masked, Phase.CONSISTENCY):
        signed[site] = masked[site].confirm(u3)
        server.consistency(signed[site].message)
    signatures = server.close_consistency()

    for site in answering(signed, Phase.UNMASKING):
        server.shares(signed[site].unmask(signatures).message)
    return server.close_unmask(), u3
