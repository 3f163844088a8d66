"""What a site does in each step, what it holds after it, and what it never does twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.masking import add_mask, self_mask_key
from fedseg.secagg.messages import Advertisement, seed_commitment
from fedseg.secagg.sealing import agree, public_key, seal
from fedseg.secagg.shamir import split
from fedseg.secagg.site import Advertised, Masked, Shared, Signed, Unmasked, advertise, contribute
from fedseg.secagg.thresholds import Thresholds

from .helpers import after_advertise, after_confirm, after_mask, after_share, entropy, identity, inputs_of, session

FIVE = session(5)
STAYED = ("amiens", "brno", "cluj", "essen")


def test_two_contributors_are_refused_even_where_two_shares_reconstruct() -> None:
    """At n = 3, t is 2 and m is 3: the third site's loss must not leave two who read each other's update."""
    inputs, two = inputs_of(session()), ("amiens", "brno")
    server, advertised = after_advertise(session())
    with pytest.raises(ProtocolError, match="2 sites are fewer than 3"):
        advertised["amiens"].share_keys(server.close_advertise()[:2], entropy())
    server, shared = after_share(session())
    server.close_share()
    with pytest.raises(ProtocolError, match="2 sites are fewer than 3"):
        shared["amiens"].mask({"brno": server.envelopes_for("amiens")["brno"]}, two, inputs["amiens"])
    _, masked = after_mask(session(), inputs)
    with pytest.raises(ProtocolError, match="2 sites are fewer than 3"):
        masked["amiens"].confirm(two)
    server, accepted = after_confirm(session(accept_two=True), inputs, lost=("cluj",))
    assert set(accepted["amiens"].unmask(server.close_consistency()).message.key_shares) == {"cluj"}


def test_envelopes_must_be_exactly_one_from_each() -> None:
    for change in ("missing", "own"):
        server, states = after_share(session())
        u2 = server.close_share()
        incoming = dict(server.envelopes_for("amiens"))
        if change == "missing":
            del incoming["brno"]
        else:
            incoming["amiens"] = incoming["brno"]
        with pytest.raises(ProtocolError, match="the envelopes are not exactly one from each other site of U2"):
            states["amiens"].mask(incoming, u2, inputs_of(session())["amiens"])


def test_swapped_replayed_or_tampered_envelopes_name_their_sender() -> None:
    server, states = after_share(session())
    u2 = server.close_share()
    good = server.envelopes_for("amiens")
    replayed = after_share(session(attempt=2))[0]
    replayed.close_share()
    for wrong in (
        {"brno": good["cluj"], "cluj": good["brno"]},
        {**good, "brno": good["brno"][:-1] + bytes([good["brno"][-1] ^ 1])},
        {**good, "brno": replayed.envelopes_for("amiens")["brno"]},
        {**good, "brno": server.envelopes_for("cluj")["brno"]},
    ):
        state = dataclasses.replace(states["amiens"])
        with pytest.raises(SiteFault, match="site brno at ShareKeys: envelope failed to open") as caught:
            state.mask(wrong, u2, inputs_of(session())["amiens"])
        assert (caught.value.site, caught.value.phase) == ("brno", "ShareKeys")


@pytest.mark.parametrize(("seed_of", "key_of"), [("cluj", "cluj"), ("cluj", "amiens"), ("amiens", "cluj")])
def test_shares_of_another_index_are_refused(seed_of: str, key_of: str) -> None:
    """A dealer whose envelope opens, but holds what belongs to somebody else."""
    header = session()
    server, states = after_advertise(header)
    u1 = server.close_advertise()
    honest = states["amiens"].share_keys(u1, entropy())
    dealer = states["brno"]
    agreed = agree(dealer.keys.envelope, u1[0].envelope_key)
    seeds, keys = (dict(zip(header.sites, split(dealer.keys.seed, 2, 3, entropy()), strict=True)) for _ in range(2))
    sealed = seal(
        agreed, honest.sid, sender="brno", receiver="amiens", seed_share=seeds[seed_of], key_share=keys[key_of]
    )
    from_cluj = states["cluj"].share_keys(u1, entropy()).message
    with pytest.raises(SiteFault, match="site brno at ShareKeys: envelope holds shares that are not amiens's"):
        honest.mask({"brno": sealed, "cluj": from_cluj.sealed["amiens"]}, header.sites, inputs_of(header)["amiens"])


def test_a_server_that_shows_two_models_gets_no_shares() -> None:
    """The model hash is in sid0: keys that a site signed for another model are nothing to this one."""
    one, two = session(model_hash=bytes(32)), session(model_hash=b"\1" * 32)
    first, second = after_advertise(one)[1], after_advertise(two)[1]
    u1 = [first["amiens"].message, first["brno"].message, second["cluj"].message]
    with pytest.raises(SiteFault, match="site cluj at AdvertiseKeys: the signature of cluj in AdvertiseKeys does not"):
        first["amiens"].share_keys(u1, entropy())


def test_two_lists_of_keys_are_two_sessions_whose_envelopes_do_not_open() -> None:
    """A site that signs two advertisements and a server that shows one here and one there: sid differs."""
    server, states = after_advertise(FIVE)
    *u1, last = server.close_advertise()
    twin = Advertisement.signed(FIVE, identity("essen", FIVE), public_key(b"x" * 32), last.mask_key, bytes(32))
    shared = states["amiens"].share_keys([*u1, last], entropy("a"))
    elsewhere = {
        site: states[site].share_keys([*u1, twin], entropy(site)).message for site in ("brno", "cluj", "dakar")
    }
    incoming = {site: message.sealed["amiens"] for site, message in elsewhere.items()}
    with pytest.raises(SiteFault, match="site brno at ShareKeys: envelope failed to open"):
        shared.mask(incoming, ("amiens", "brno", "cluj", "dakar"), inputs_of(FIVE)["amiens"])


def test_an_input_of_another_type_or_shape_is_refused() -> None:
    for x in (np.zeros(5, np.uint32), np.zeros(6, np.int64), np.zeros((6, 1), np.uint32)):
        server, states = after_share(session())
        u2 = server.close_share()
        with pytest.raises(ProtocolError, match=r"an input is uint32\[6\], not"):
            states["amiens"].mask(server.envelopes_for("amiens"), u2, x)  # type: ignore[arg-type]


def test_a_session_of_another_roster_and_a_plain_one_get_no_keys() -> None:
    """The server's choice of a cohort: four colluders and a victim are no roster that the victim has confirmed."""
    for offered in (session(5, sites=("amiens", "e1", "e2", "e3", "e4")), session(3), session(5, roster=bytes(32))):
        with pytest.raises(ProtocolError, match="the session is not one of the roster that this site has confirmed"):
            advertise(offered, identity("amiens", FIVE), entropy())
    with pytest.raises(ProtocolError, match="sums in the clear") as caught:
        advertise(session(thresholds=Thresholds.plain(3, 2)), identity("brno"), entropy())
    assert caught.value.where == "AdvertiseKeys"


def test_nothing_goes_out_in_the_clear_but_in_a_plain_session_of_the_roster() -> None:
    x, plain = inputs_of(session())["amiens"], Thresholds.plain(3, 2)
    with pytest.raises(ProtocolError, match="this session is a secure one: nothing goes out in the clear"):
        contribute(session(), identity("amiens"), session().sites, x)
    with pytest.raises(ProtocolError, match="the session is not one of the roster"):
        contribute(session(thresholds=plain, roster=bytes(32)), identity("amiens"), session().sites, x)
    header = session(thresholds=plain)
    contribute(header, identity("amiens"), header.sites, x).verify(header.sid0(), identity("brno").roster)


def test_each_step_is_taken_once_even_after_a_refusal() -> None:
    """Regression: "one mask stream used twice in a round, so that the difference of two plaintexts falls out"."""
    server, states = after_advertise(session())
    u1 = server.close_advertise()
    shared = {}
    for site, state in states.items():
        shared[site] = state.share_keys(u1, entropy(site))
        server.share(shared[site].message)
    with pytest.raises(ProtocolError, match="taken the step ShareKeys of this attempt already"):
        states["amiens"].share_keys(u1, entropy())
    u2, x = server.close_share(), inputs_of(session())["amiens"]
    masked, _ = shared["amiens"].mask(server.envelopes_for("amiens"), u2, x)
    with pytest.raises(ProtocolError, match="taken the step MaskedInputCollection of this attempt already"):
        shared["amiens"].mask(server.envelopes_for("amiens"), u2, x + np.uint32(1))
    with pytest.raises(ProtocolError, match="it left out amiens"):
        masked.confirm(["brno", "cluj"])
    with pytest.raises(ProtocolError, match="taken the step ConsistencyCheck of this attempt already") as caught:
        masked.confirm(u2)
    assert "a second set could bare the update" in str(caught.value)


def test_one_signature_and_one_answer_a_session() -> None:
    _, masked = after_mask(FIVE, inputs_of(FIVE))
    masked["amiens"].confirm(FIVE.sites)
    with pytest.raises(ProtocolError, match="taken the step ConsistencyCheck of this attempt already"):
        masked["amiens"].confirm(FIVE.sites[:4])
    server, signed = after_confirm(FIVE, inputs_of(FIVE))
    signatures = server.close_consistency()
    signed["amiens"].unmask(signatures)
    with pytest.raises(ProtocolError, match="taken the step Unmasking of this attempt already"):
        signed["amiens"].unmask(signatures)


def test_a_wrong_order_is_no_method_at_all() -> None:
    """One type a phase: the type checker sees what these lines see."""
    steps = {"share_keys", "mask", "confirm", "unmask"}
    offered = {kind: steps & set(dir(kind)) for kind in (Advertised, Shared, Masked, Signed, Unmasked)}
    assert offered == {
        Advertised: {"share_keys"},
        Shared: {"mask"},
        Masked: {"confirm"},
        Signed: {"unmask"},
        Unmasked: set(),
    }


def test_a_site_releases_one_kind_for_each_and_keeps_its_own_key() -> None:
    """Regression: "a site that reveals both kinds of share for one id" (Flower SecAgg+)."""
    server, states = after_confirm(FIVE, inputs_of(FIVE), lost=("dakar",))
    done = states["amiens"].unmask(server.close_consistency())
    assert set(done.message.seed_shares) == set(STAYED)
    assert set(done.message.key_shares) == {"dakar"}
    assert done.u3 == STAYED


def test_no_key_share_reaches_the_server_but_for_dropouts() -> None:
    """Regression: "key shares handed to the aggregator at set-up" (OpenFL 1.8)."""
    server, states = after_confirm(session(), inputs_of(session()))
    signatures = server.close_consistency()
    assert all(not state.unmask(signatures).message.key_shares for state in states.values())


def test_after_masking_a_site_holds_no_key_of_its_own() -> None:
    kinds = {kind: {each.name for each in dataclasses.fields(kind)} for kind in (Masked, Signed, Unmasked)}
    assert all("keys" not in names for names in kinds.values())
    assert "held" not in kinds[Unmasked]


def test_every_attempt_and_site_has_secrets_of_its_own() -> None:
    """Regression: "one secret in every kit" (NVFlare), "one secret shared by all clients" (APPFL)."""
    draw, seen = entropy(), set()
    for attempt in (1, 2):
        for site in session().sites:
            state = advertise(session(attempt=attempt), identity(site), draw)
            message = state.message
            seen |= {state.keys.envelope, state.keys.mask, state.keys.seed, message.envelope_key, message.mask_key}
            assert message.seed_commitment == seed_commitment(state.header, site, state.keys.seed)
    assert len(seen) == 2 * 3 * 5


def test_masks_use_all_256_bits_of_the_seed() -> None:
    """Regression: "a 256-bit seed folded to 32 bits" (flwrlabs/flower #7522): every byte of it changes the mask."""
    masks = set()
    for place in range(-1, 32):
        seed = bytes(int(byte == place) for byte in range(32))
        vector = np.zeros(4, np.uint32)
        add_mask(vector, self_mask_key(seed, bytes(32), "brno"), 1)
        masks.add(vector.tobytes())
    assert len(masks) == 33


def test_the_input_is_left_for_a_second_attempt_and_masked_afresh() -> None:
    x = inputs_of(session())["amiens"]
    before, seen = x.copy(), []
    for attempt in (1, 2):
        server, states = after_share(session(attempt=attempt))
        u2 = server.close_share()
        _, y = states["amiens"].mask(server.envelopes_for("amiens"), u2, x)
        seen.append(y)
    np.testing.assert_array_equal(x, before)
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], x)
