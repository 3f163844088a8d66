"""The plain sum holds its sites to the same things."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from fedseg.errors import BelowQuorum, ProtocolError, SiteFault
from fedseg.secagg.aggregator import PlainAggregator
from fedseg.secagg.site import contribute
from fedseg.secagg.thresholds import Thresholds

from .helpers import Vector, identity, inputs_of, ring_sum, roster, session


def test_plain_sums_check_the_same_things() -> None:
    header = session(thresholds=Thresholds.plain(3, 2))
    inputs = inputs_of(header)
    server = PlainAggregator(header, roster())
    for early in (server.close_mask, server.close_unmask):
        with pytest.raises(ProtocolError, match=r"joining is still open|inputs are still being taken"):
            early()
    message = contribute(header, identity("amiens"), ("amiens", "cluj"), inputs["amiens"])
    with pytest.raises(ProtocolError, match="no input can be taken before joining is closed"):
        server.mask(message, inputs["amiens"])
    with pytest.raises(SiteFault, match="site oslo at AdvertiseKeys: it does not take part"):
        server.join("oslo")
    server.join("cluj")
    with pytest.raises(BelowQuorum, match="1 of 3 sites finished AdvertiseKeys, 2 are needed"):
        server.close_join()
    server.join("amiens")
    assert server.close_join() == ("amiens", "cluj")
    assert server.answered == ()
    with pytest.raises(ProtocolError, match="brno is too late to join"):
        server.join("brno")
    assert server.mask(message, inputs["amiens"])
    assert not server.mask(message, inputs["amiens"])
    with pytest.raises(SiteFault, match="does not fit its digest"):
        server.mask(contribute(header, identity("cluj"), ("amiens", "cluj"), inputs["brno"]), inputs["cluj"])
    with pytest.raises(SiteFault, match="the signature of cluj in MaskedInputCollection does not verify"):
        server.mask(dataclasses.replace(message, site="cluj"), inputs["amiens"])
    with pytest.raises(BelowQuorum, match="1 of 3 sites finished MaskedInputCollection, 2 are needed"):
        server.close_mask()
    server.mask(contribute(header, identity("cluj"), ("amiens", "cluj"), inputs["cluj"]), inputs["cluj"])
    assert server.close_mask() == ("amiens", "cluj")
    np.testing.assert_array_equal(server.close_unmask(), ring_sum([inputs["amiens"], inputs["cluj"]]))
    with pytest.raises(ProtocolError, match="or after the sum"):
        server.mask(message, inputs["amiens"])


def test_a_rule_gets_the_vectors_of_the_contributors_in_order() -> None:
    header = session(thresholds=Thresholds.plain(3, 2))
    inputs = inputs_of(header)
    seen: list[Vector] = []

    def rule(vectors: Sequence[Vector]) -> Vector:
        seen.extend(vectors)
        return seen[0]

    server = PlainAggregator(header, roster(), quorum=2, rule=rule)
    for site in header.sites:
        server.join(site)
    joined = server.close_join()
    for site in ("cluj", "amiens", "cluj"):
        server.mask(contribute(header, identity(site), joined, inputs[site]), inputs[site])
    server.close_mask()
    np.testing.assert_array_equal(server.close_unmask(), inputs["amiens"])
    np.testing.assert_array_equal(seen, [inputs["amiens"], inputs["cluj"]])


def test_an_input_of_another_shape_or_type_is_not_signed() -> None:
    header = session(thresholds=Thresholds.plain(3, 2))
    x = inputs_of(header)["amiens"]
    for wrong in (x[1:], x.astype(np.int64)):
        with pytest.raises(ProtocolError, match="an input is uint32"):
            contribute(header, identity("amiens"), ("amiens", "cluj"), wrong)  # type: ignore[arg-type]  # that is the test
