"""Sites that lie or repeat themselves, and calls out of order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedseg.errors import BelowQuorum, ProtocolError, SiteFault
from fedseg.secagg.aggregator import PlainAggregator, SecureAggregator
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Phase, Shares
from fedseg.secagg.shamir import PRIME, Share
from fedseg.secagg.site import Unmasked, advertise
from fedseg.secagg.thresholds import Thresholds

from .helpers import (
    Vector,
    after_advertise,
    after_confirm,
    after_mask,
    after_share,
    after_unmask,
    entropy,
    identity,
    inputs_of,
    ring_sum,
    roster,
    session,
)

FIVE = session(5)


def advertised(site: str, seed: str) -> Advertisement:
    return advertise(session(), identity(site), entropy(seed)).message


def test_advertisements_of_strangers_twice_unsigned_or_with_a_key_in_use() -> None:
    server, states = after_advertise(session())
    own = states["brno"].message
    server.advertise(own)
    assert server.answered == ("amiens", "brno", "cluj")
    second = advertised("brno", "again")
    with pytest.raises(SiteFault, match="site brno at AdvertiseKeys: it sent a second message that differs"):
        server.advertise(second)
    with pytest.raises(SiteFault, match="site oslo at AdvertiseKeys: the roster does not name it"):
        server.advertise(dataclasses.replace(second, site="oslo"))
    server = SecureAggregator(session(), roster())
    server.advertise(own)
    for forged in (dataclasses.replace(second, site="cluj"), dataclasses.replace(second, mask_key=own.mask_key)):
        with pytest.raises(SiteFault, match=r"the signature of (brno|cluj) in AdvertiseKeys does not verify"):
            server.advertise(forged)
    for keys in ((own.mask_key, second.mask_key), (second.mask_key, own.mask_key), (own.envelope_key, own.mask_key)):
        taken = Advertisement.signed(session(), identity("cluj"), *keys, bytes(32))
        with pytest.raises(SiteFault, match="site cluj at AdvertiseKeys: its key is the same as that of another site"):
            server.advertise(taken)
    assert server.answered == ("brno",)


def test_envelopes_that_miss_a_site_or_come_twice() -> None:
    server, states = after_advertise(session())
    u1 = server.close_advertise()
    good = states["amiens"].share_keys(u1, entropy()).message
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
    masked, y = states[site].mask(server.envelopes_for(site), u2, inputs_of(session())[site])
    return server, masked.message, y


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
        server.mask(MaskedInput.signed(server.sid, identity("brno"), message.digest), y)
    for forged in (dataclasses.replace(message, site="brno"), dataclasses.replace(message, digest=bytes(32))):
        with pytest.raises(SiteFault, match="in MaskedInputCollection does not verify"):
            server.mask(forged, y)
    assert not server.answered
    assert server.mask(message, np.frombuffer(y.tobytes(), np.uint32)) is True
    assert server.mask(message, y) is False
    with pytest.raises(SiteFault, match="second message that differs"):
        server.mask(MaskedInput.signed(server.sid, identity("amiens"), bytes(32)), y)
    with pytest.raises(SiteFault, match="site oslo at MaskedInputCollection: it does not take part"):
        server.mask(MaskedInput("oslo", bytes(32), bytes(64)), y)
    assert server.answered == ("amiens",)
    assert server.inputs == {"amiens": message}
    with pytest.raises(BelowQuorum, match="1 of 3 sites finished MaskedInputCollection, 3 are needed"):
        server.close_mask()


def test_an_input_that_came_twice_counts_once() -> None:
    inputs = inputs_of(session())
    server, states = after_share(session())
    u2 = server.close_share()
    masked = {}
    for site in u2:
        masked[site], y = states[site].mask(server.envelopes_for(site), u2, inputs[site])
        server.mask(masked[site].message, y)
        server.mask(masked[site].message, y)
    u3 = server.close_mask()
    signed = {site: masked[site].confirm(u3) for site in u3}
    for state in signed.values():
        server.consistency(state.message)
    signatures = server.close_consistency()
    for site in u3:
        server.shares(signed[site].unmask(signatures).message)
    np.testing.assert_array_equal(server.close_unmask(), ring_sum(list(inputs.values())))


def test_signatures_of_strangers_or_over_other_sets() -> None:
    server, states = after_mask(FIVE, inputs_of(FIVE), lost=("dakar",))
    u3 = server.close_mask()
    brno = states["brno"]
    for u2, claimed in ((FIVE.sites, FIVE.sites), (u3, u3)):
        with pytest.raises(
            SiteFault, match="site brno at ConsistencyCheck: the signature of brno in ConsistencyCheck does"
        ):
            server.consistency(Consistency.signed(brno.sid, brno.identity, u2, claimed))
    with pytest.raises(SiteFault, match="site dakar at ConsistencyCheck: it does not take part"):
        server.consistency(Consistency.signed(brno.sid, identity("dakar", FIVE), FIVE.sites, u3))
    good = brno.confirm(u3).message
    server.consistency(good)
    server.consistency(Consistency.from_bytes(good.to_bytes()))
    assert server.answered == ("brno",)
    with pytest.raises(BelowQuorum, match="1 of 5 sites finished ConsistencyCheck, 4 are needed"):
        server.close_consistency()
    for site in ("amiens", "cluj", "essen"):
        server.consistency(states[site].confirm(u3).message)
    assert list(server.close_consistency()) == ["amiens", "brno", "cluj", "essen"]


def test_the_silent_are_still_in_the_sum_but_return_no_shares() -> None:
    inputs = inputs_of(FIVE)
    server, states = after_unmask(FIVE, inputs, silent=("cluj",))
    assert server.answered == ("amiens", "brno", "dakar", "essen")
    late = Shares.signed(server.sid, identity("cluj", FIVE), *_maps(states["brno"].message))
    with pytest.raises(SiteFault, match="site cluj at Unmasking: it does not take part"):
        server.shares(late)
    np.testing.assert_array_equal(server.close_unmask(), ring_sum(list(inputs.values())))


def _maps(message: Shares) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return dict(message.seed_shares), dict(message.key_shares)


def test_shares_that_are_not_due() -> None:
    server, states = after_confirm(FIVE, inputs_of(FIVE), lost=("dakar",))
    signatures = server.close_consistency()
    done = states["amiens"].unmask(signatures)
    good = done.message
    from_brno = states["brno"].unmask(signatures).message
    amiens = states["amiens"].identity
    seeds, keys = _maps(good)
    fewer = {site: share for site, share in seeds.items() if site != "cluj"}
    for wrong in ((fewer, keys), (seeds, {}), (seeds | keys, {}), (fewer, keys | {"cluj": seeds["cluj"]})):
        with pytest.raises(
            SiteFault, match="site amiens at Unmasking: its shares are not those that U2 and U3 call for"
        ):
            server.shares(Shares.signed(server.sid, amiens, *wrong))
    with pytest.raises(SiteFault, match="site amiens at Unmasking: its shares are those of another holder"):
        server.shares(Shares.signed(server.sid, amiens, *_maps(from_brno)))
    with pytest.raises(SiteFault, match="site dakar at Unmasking: it does not take part"):
        server.shares(Shares.signed(server.sid, identity("dakar", FIVE), seeds, keys))
    for forged in (dataclasses.replace(from_brno, site="amiens"), dataclasses.replace(good, key_shares={})):
        with pytest.raises(SiteFault, match="site amiens at Unmasking: the signature of amiens in Unmasking does not"):
            server.shares(forged)
    server.shares(good)
    server.shares(Shares.from_bytes(good.to_bytes()))
    with pytest.raises(SiteFault, match="site amiens at Unmasking: it sent a second message that differs"):
        server.shares(lie(done))
    assert server.answered == ("amiens",)
    with pytest.raises(BelowQuorum, match="1 of 5 sites finished Unmasking, 4 are needed"):
        server.close_unmask()


def lie(done: Unmasked) -> Shares:
    """False shares for everybody, signed by the liar."""

    def false(data: bytes) -> bytes:
        share = Share.from_bytes(data)
        return Share(share.index, (share.value + 1) % PRIME).to_bytes()

    seeds, keys = _maps(done.message)
    return Shares.signed(
        done.sid,
        done.identity,
        {site: false(data) for site, data in seeds.items()},
        {site: false(data) for site, data in keys.items()},
    )


def unmask_with_liars(n: int, lost: tuple[str, ...], liars: tuple[str, ...]) -> tuple[Vector, Vector]:
    header = session(n)
    inputs = inputs_of(header)
    server, states = after_confirm(header, inputs, lost=lost)
    signatures = server.close_consistency()
    for site, state in states.items():
        done = state.unmask(signatures)
        server.shares(lie(done) if site in liars else done.message)
    return server.close_unmask(), ring_sum([inputs[site] for site in states])


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
    for early in (server.close_mask, lambda: server.inputs):
        with pytest.raises(ProtocolError, match="no input can be taken during AdvertiseKeys"):
            early()
    with pytest.raises(ProtocolError, match="ConsistencyCheck is not open: this attempt is at AdvertiseKeys"):
        server.consistency(Consistency("amiens", bytes(64)))
    with pytest.raises(ProtocolError, match="ConsistencyCheck is not open"):
        server.close_consistency()
    assert server.sid == b""
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
    server, _ = after_unmask(session(), inputs_of(session()))
    server.close_unmask()
    assert (server.phase, server.answered) == (None, ())
    with pytest.raises(ProtocolError, match="Unmasking is not open: this attempt is at its end"):
        server.close_unmask()


def test_a_phase_below_quorum_stays_open_for_the_late() -> None:
    server = SecureAggregator(session(), roster())
    for site in ("amiens", "brno"):
        server.advertise(advertised(site, site))
    with pytest.raises(BelowQuorum, match="2 of 3 sites finished AdvertiseKeys, 3 are needed"):
        server.close_advertise()
    assert server.phase is Phase.ADVERTISE_KEYS
    server.advertise(advertised("cluj", "cluj"))
    assert len(server.close_advertise()) == 3


def test_a_plain_session_is_not_summed_as_a_secure_one() -> None:
    with pytest.raises(ProtocolError, match="a plain session needs a PlainAggregator"):
        SecureAggregator(session(thresholds=Thresholds.plain(3, 3)), roster())


@pytest.mark.parametrize("kind", [SecureAggregator, PlainAggregator])
def test_a_session_of_another_roster_is_not_summed(kind: type[SecureAggregator | PlainAggregator]) -> None:
    for header in (session(roster=bytes(32)), session(sites=("amiens", "brno", "dakar")), session(study="other")):
        with pytest.raises(ProtocolError, match="the session is not one of the roster"):
            kind(header, roster())


def test_an_input_that_comes_after_u3_is_out_however_good() -> None:
    """It could be taken off the sum by nobody: the sites have signed a U3 without it."""
    header, inputs = FIVE, inputs_of(FIVE)
    server, states = after_share(header)
    u2 = server.close_share()
    masked = {site: states[site].mask(server.envelopes_for(site), u2, inputs[site]) for site in u2}
    *early, (late, y) = masked.values()
    for state, vector in early:
        server.mask(state.message, vector)
    u3 = server.close_mask()
    with pytest.raises(ProtocolError, match="MaskedInputCollection is not open: this attempt is at ConsistencyCheck"):
        server.mask(late.message, y)
    signed = [state.confirm(u3) for state, _ in early]
    for each in signed:
        server.consistency(each.message)
    done = [each.unmask({state.site: state.message.signature for state in signed}) for each in signed]
    with pytest.raises(ProtocolError, match="Unmasking is not open: this attempt is at ConsistencyCheck"):
        server.shares(done[0].message)
    server.close_consistency()
    for answer in done:
        server.shares(answer.message)
    np.testing.assert_array_equal(server.close_unmask(), ring_sum([inputs[site] for site in u3]))
    with pytest.raises(ProtocolError, match="Unmasking is not open: this attempt is at its end"):
        server.shares(done[0].message)
