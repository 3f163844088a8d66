"""Frozen answers of our own: `python -m tests.secagg.vectors > tests/vectors/secagg.json` writes them anew.

A change of these is a change of the protocol: its version in every domain string must change with it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.encoding import Encoding, rounding_seed
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.shamir import split
from fedseg.secagg.site import advertise
from fedseg.secagg.thresholds import Thresholds

from .helpers import entropy


def build() -> dict[str, Any]:
    """One attempt of four sites, of which the last is lost after ShareKeys."""
    code = Encoding(4, 2.0, 3, 6)
    header = SessionHeader.of(
        study="vectors",
        plan_hash=bytes(range(32)),
        round=1,
        attempt=1,
        model_hash=bytes(range(32, 64)),
        encoding=code,
        sites=("a", "b", "c", "d"),
        thresholds=Thresholds.of(4),
    )
    server = SecureAggregator(header)
    inputs = {
        site: code.encode(
            np.linspace(-1, 1, 6, dtype=np.float32) * place, place % 3 + 1, rounding_seed(9, 1, site)
        ).vector
        for place, site in enumerate(header.sites)
    }
    advertised = {site: advertise(header, site, entropy(site)) for site in header.sites}
    for _, message in advertised.values():
        server.advertise(message)
    u1 = server.close_advertise()
    shared = {site: state.share_keys(u1, entropy(site + "/2")) for site, (state, _) in advertised.items()}
    for _, envelopes in shared.values():
        server.share(envelopes)
    u2 = server.close_share()
    masked = {site: shared[site][0].mask(server.envelopes_for(site), u2, inputs[site]) for site in "abc"}
    for _, masked_input, y in masked.values():
        server.mask(masked_input, y)
    u3 = server.close_mask()
    shares = {site: state.unmask(u3)[1] for site, (state, _, _) in masked.items()}
    for answer in shares.values():
        server.shares(answer)
    total = server.close_unmask()
    return {
        "header": header.to_bytes().hex(),
        "sid0": header.sid0().hex(),
        "scale": code.scale,
        "weight_scale": code.weight_scale,
        "rounding_seed": rounding_seed(9, 1, "a").hex(),
        "inputs": {site: x.tolist() for site, x in inputs.items()},
        "advertisements": {each.site: each.to_bytes().hex() for each in u1},
        "sid": shared["a"][0].sid.hex(),
        "envelopes": {site: envelopes.to_bytes().hex() for site, (_, envelopes) in shared.items()},
        "masked": {site: y.tolist() for site, (_, _, y) in masked.items()},
        "masked_inputs": {site: message.to_bytes().hex() for site, (_, message, _) in masked.items()},
        "shares": {site: answer.to_bytes().hex() for site, answer in shares.items()},
        "total": total.tolist(),
        "shamir": [share.to_bytes().hex() for share in split(bytes(range(32)), 3, 4, entropy("shamir"))],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build(), indent=1) + "\n")
