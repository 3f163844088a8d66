"""Sites that lie or repeat themselves, and calls out of order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedseg.errors import BelowQuorum, ProtocolError, SiteFault
from fedseg.secagg.aggregator import PlainAggregator, SecureAggregator, plain_input
from fedseg.secagg.messages import Envelopes, MaskedInput, Phase, Shares
from fedseg.secagg.shamir import PRIME, Share
from fedseg.secagg.site import advertise
from fedseg.secagg.thresholds import Thresholds

from .helpers import Vector, after_advertise, after_mask, after_share, entropy, inputs_of, ring_sum, session


def test_advertisements_of_strangers_twice_or_with_a_key_in_use() -> None:
    server, states = after_advertise(session())
    own = states["brno"].own
    server.advertise(own)
    assert server.answered == ("amiens", "brno", "cluj")
    _, second = advertise(session(), "brno", entropy("again"))
    with pytest.raises(SiteFault, match="site brno at AdvertiseKeys: it sent a second message that differs"):
        server.advertise(second)
    with pytest.raises(SiteFault, match="site oslo at AdvertiseKeys: it does not take part"):
        server.advertise(dataclasses.replace(second, site="oslo"))
    server = SecureAggregator(session())
    server.advertise(own)
    with pytest.raises(SiteFault, match="site cluj at AdvertiseKeys: its key is the same as that of another site"):
        server.advertise(dataclasses.replace(second, site="cluj", mask_key=own.envelope_key))


def test_envelopes_that_miss_a_site_or_come_twice() -> None:
    server, states = after_advertise(session())
    u1 = server.close_advertise()
    _, good = states["amiens"].share_keys(u1, entropy())
    with pytest.raises(SiteFault, match="site amiens at ShareKeys: its envelopes are not one to each other site"):
        server.share(Envelopes("amiens", {"brno": bytes(86)}))
    server.share(good)
    server.share(Envelopes.from_bytes(good.to_bytes()))
    with pytest.raises(SiteFault, match="second message that differs"):
        server.share(Envelopes("amiens", dict.fromkeys(good.sealed, bytes(86))))
    with pytest.raises(SiteFault, match="site oslo at ShareKeys: it does not take part"):
        server.share(Envelopes("oslo", good.sealed))


def masked_by(site: str) -> tuple[SecureAggregator, MaskedInput, Vector]:
    server, states = after_share(session())
    u2 = server.close_share()
    _, message, y = states[site].mask(server.envelopes_for(site), u2, inputs_of(session())[site])
    return server, message, y


def test_an_input_is_added_once_and_only_whole() -> None:
    server, message, y = masked_by("amiens")
    for wrong in (y + np.uint32(1), y[::-1].copy()):
        with pytest.raises(SiteFault, match="site amiens at MaskedInputCollection: the vector does not fit its digest"):
            server.mask(message, wrong)
    with pytest.raises(SiteFault, match=r"sent uint32 of \(5,\) instead of uint32 of \(6,\)"):
        server.mask(message, y[:-1])
    with pytest.raises(SiteFault, match="sent int64"):
        server.mask(message, y.astype(np.int64))
    with pytest.raises(SiteFault, match="does not fit its digest"):
        server.mask(dataclasses.replace(message, site="brno"), y)
    assert not server.answered
    assert server.mask(message, np.frombuffer(y.tobytes(), np.uint32)) is True
    assert server.mask(message, y) is False
    with pytest.raises(SiteFault, match="second message that differs"):
        server.mask(MaskedInput("amiens", bytes(32)), y)
    with pytest.raises(SiteFault, match="site oslo at MaskedInputCollection: it does not take part"):
        server.mask(MaskedInput("oslo", bytes(32)), y)
    assert server.answered == ("amiens",)
    with pytest.raises(BelowQuorum, match="1 of 3 sites finished MaskedInputCollection, 3 are needed"):
        server.close_mask()


def test_an_input_that_came_twice_counts_once() -> None:
    inputs = inputs_of(session())
    server, states = after_share(session())
    u2 = server.close_share()
    masked = {}
    for site in u2:
        masked[site], message, y = states[site].mask(server.envelopes_for(site), u2, inputs[site])
        server.mask(message, y)
        server.mask(message, y)
    u3 = server.close_mask()
    for site in u3:
        server.shares(masked[site].unmask(u3)[1])
    np.testing.assert_array_equal(server.close_unmask(), ring_sum(list(inputs.values())))


def test_shares_that_are_not_due() -> None:
    header = session(5)
    server, states = after_mask(header, inputs_of(header), lost=("dakar",))
    u3 = server.close_mask()
    _, good = states["amiens"].unmask(u3)
    _, from_brno = states["brno"].unmask(u3)
    seeds, keys = dict(good.seed_shares), dict(good.key_shares)
    del seeds["cluj"]
    for wrong in (Shares("amiens", seeds, keys), Shares("amiens", good.seed_shares, {})):
        with pytest.raises(
            SiteFault, match="site amiens at Unmasking: its shares are not those that U2 and U3 call for"
        ):
            server.shares(wrong)
    with pytest.raises(SiteFault, match="site amiens at Unmasking: its shares are those of another holder"):
        server.shares(Shares("amiens", from_brno.seed_shares, from_brno.key_shares))
    with pytest.raises(SiteFault, match="site dakar at Unmasking: it does not take part"):
        server.shares(Shares("dakar", good.seed_shares, good.key_shares))
    server.shares(good)
    server.shares(Shares.from_bytes(good.to_bytes()))
    assert server.answered == ("amiens",)
    with pytest.raises(BelowQuorum, match="1 of 5 sites finished Unmasking, 4 are needed"):
        server.close_unmask()


def lie(message: Shares) -> Shares:
    """False shares for everybody."""

    def false(data: bytes) -> bytes:
        share = Share.from_bytes(data)
        return Share(share.index, (share.value + 1) % PRIME).to_bytes()

    return Shares(
        message.site,
        {site: false(data) for site, data in message.seed_shares.items()},
        {site: false(data) for site, data in message.key_shares.items()},
    )


def unmask_with_liars(n: int, lost: tuple[str, ...], liars: tuple[str, ...]) -> tuple[Vector, Vector]:
    header = session(n)
    inputs = inputs_of(header)
    server, states = after_mask(header, inputs, lost=lost)
    u3 = server.close_mask()
    for site in u3:
        _, shares = states[site].unmask(u3)
        server.shares(lie(shares) if site in liars else shares)
    return server.close_unmask(), ring_sum([inputs[site] for site in u3])


def test_a_lying_responder_is_got_around_where_shares_are_to_spare() -> None:
    np.testing.assert_array_equal(*unmask_with_liars(6, ("fez",), ("amiens",)))
    np.testing.assert_array_equal(*unmask_with_liars(10, ("jena",), ("amiens", "dakar")))


def test_a_lying_responder_cannot_frame_the_owner() -> None:
    with pytest.raises(ProtocolError, match="the seed of amiens cannot be reconstructed") as caught:
        unmask_with_liars(5, ("dakar",), ("brno",))
    assert caught.value.hint == (
        "amiens dealt false shares, or one of amiens, brno, cluj, essen returned one: all are suspects"
    )


def test_calls_out_of_order() -> None:
    server, _ = after_advertise(session())
    with pytest.raises(ProtocolError, match="ShareKeys is not open: this attempt is at AdvertiseKeys"):
        server.share(Envelopes("amiens", {}))
    with pytest.raises(ProtocolError, match="no input can be taken during AdvertiseKeys"):
        server.close_mask()
    with pytest.raises(ProtocolError, match="Unmasking is not open"):
        server.close_unmask()
    u1 = server.close_advertise()
    with pytest.raises(ProtocolError, match="AdvertiseKeys is not open: this attempt is at ShareKeys"):
        server.advertise(u1[0])
    with pytest.raises(BelowQuorum, match="0 of 3 sites finished ShareKeys"):
        server.close_share()
    with pytest.raises(SiteFault, match="it does not take part"):
        server.envelopes_for("amiens")


def test_an_attempt_ends_once() -> None:
    server, states = after_mask(session(), inputs_of(session()))
    u3 = server.close_mask()
    for state in states.values():
        server.shares(state.unmask(u3)[1])
    server.close_unmask()
    assert (server.phase, server.answered) == (None, ())
    with pytest.raises(ProtocolError, match="Unmasking is not open: this attempt is at its end"):
        server.close_unmask()


def test_a_phase_below_quorum_stays_open_for_the_late() -> None:
    server = SecureAggregator(session())
    for site in ("amiens", "brno"):
        server.advertise(advertise(session(), site, entropy(site))[1])
    with pytest.raises(BelowQuorum, match="2 of 3 sites finished AdvertiseKeys, 3 are needed"):
        server.close_advertise()
    assert server.phase is Phase.ADVERTISE_KEYS
    server.advertise(advertise(session(), "cluj", entropy("cluj"))[1])
    assert len(server.close_advertise()) == 3


def test_a_plain_session_is_not_summed_as_a_secure_one() -> None:
    with pytest.raises(ProtocolError, match="a plain session needs a PlainAggregator"):
        SecureAggregator(session(thresholds=Thresholds.plain(3, 3)))


def test_plain_sums_check_the_same_things() -> None:
    header = session(thresholds=Thresholds.plain(3, 2))
    inputs = inputs_of(header)
    server = PlainAggregator(header)
    for early in (server.close_mask, server.close_unmask):
        with pytest.raises(ProtocolError, match=r"joining is still open|inputs are still being taken"):
            early()
    message = plain_input(header, "amiens", ("amiens", "cluj"), inputs["amiens"])
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
        server.mask(plain_input(header, "cluj", ("amiens", "cluj"), inputs["brno"]), inputs["cluj"])
    with pytest.raises(BelowQuorum, match="1 of 3 sites finished MaskedInputCollection, 2 are needed"):
        server.close_mask()
    server.mask(plain_input(header, "cluj", ("amiens", "cluj"), inputs["cluj"]), inputs["cluj"])
    assert server.close_mask() == ("amiens", "cluj")
    np.testing.assert_array_equal(server.close_unmask(), ring_sum([inputs["amiens"], inputs["cluj"]]))
    with pytest.raises(ProtocolError, match="or after the sum"):
        server.mask(message, inputs["amiens"])
