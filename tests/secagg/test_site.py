"""A server that lies: each lie is refused by every site before a secret moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.masking import add_mask, self_mask_key
from fedseg.secagg.messages import Advertisement, seed_commitment
from fedseg.secagg.sealing import agree, public_key, seal
from fedseg.secagg.shamir import split
from fedseg.secagg.site import Advertised, Masked, Shared, Unmasked, advertise
from fedseg.secagg.thresholds import Thresholds

from .helpers import after_advertise, after_mask, after_share, entropy, inputs_of, session

U1 = Sequence[Advertisement]


def other(site: str, number: int = 9) -> Advertisement:
    return Advertisement(site, public_key(bytes([number] * 32)), public_key(bytes([number + 1] * 32)), bytes(32))


def repeat_key(u1: U1) -> U1:
    return [*u1[:-1], dataclasses.replace(u1[-1], mask_key=u1[1].mask_key)]


def cross_key(u1: U1) -> U1:
    return [*u1[:-1], dataclasses.replace(u1[-1], envelope_key=u1[1].mask_key)]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda u1: u1[:4], "4 sites are fewer than 7"),
        (lambda u1: u1[:6], "6 sites are fewer than 7"),
        (lambda u1: u1[1:], "it left out amiens, which it asked"),
        (lambda u1: [*u1, u1[3]], "it named a site twice"),
        (lambda u1: [u1[0]] * 10, "it named a site twice"),
        (lambda u1: [*u1[:-1], other("oslo")], "oslo was not in the step before"),
        (lambda u1: [other("amiens"), *u1[1:]], "it altered the advertisement of amiens"),
        (lambda u1: [dataclasses.replace(u1[0], seed_commitment=bytes(32)), *u1[1:]], "it altered the advertisement"),
        (repeat_key, "site jena at AdvertiseKeys: its key is the same as that of brno"),
        (cross_key, "site jena at AdvertiseKeys: its key is the same as that of brno"),
    ],
)
def test_lies_about_u1(lie: Callable[[U1], U1], message: str) -> None:
    server, states = after_advertise(session(10))
    with pytest.raises(ProtocolError, match=message) as caught:
        states["amiens"].share_keys(lie(server.close_advertise()), entropy())
    assert isinstance(caught.value, SiteFault) or caught.value.where == "ShareKeys"


@pytest.mark.parametrize(
    ("u2", "message"),
    [
        (("amiens", "brno", "cluj"), "3 sites are fewer than 4"),
        (("amiens", "amiens", "amiens", "amiens"), "it named a site twice"),
        (("brno", "cluj", "dakar", "essen"), "it left out amiens"),
        (("amiens", "brno", "cluj", "oslo"), "oslo was not in the step before"),
    ],
)
def test_lies_about_u2(u2: tuple[str, ...], message: str) -> None:
    server, states = after_share(session(5))
    server.close_share()
    incoming = {sender: server.envelopes_for("amiens").get(sender, bytes(86)) for sender in u2 if sender != "amiens"}
    with pytest.raises(ProtocolError, match=message):
        states["amiens"].mask(incoming, u2, inputs_of(session(5))["amiens"])


@pytest.mark.parametrize(
    ("u3", "message"),
    [
        (("amiens", "brno", "cluj"), "3 sites are fewer than 4"),
        (("amiens", "amiens", "amiens", "amiens"), "it named a site twice"),
        (("brno", "cluj", "dakar", "essen"), "it left out amiens"),
        (("amiens", "brno", "cluj", "oslo"), "oslo was not in the step before"),
        ((), "it left out amiens"),
    ],
)
def test_lies_about_u3(u3: tuple[str, ...], message: str) -> None:
    _, states = after_mask(session(5), inputs_of(session(5)))
    with pytest.raises(ProtocolError, match=message):
        states["amiens"].unmask(u3)


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
        masked["amiens"].unmask(two)
    _, accepted = after_mask(session(accept_two=True), inputs, lost=("cluj",))
    assert set(accepted["amiens"].unmask(two)[1].key_shares) == {"cluj"}


def test_one_one_one_is_not_three() -> None:
    """Regression: "`[1, 1, 1]` counted as three" (Flower SecAgg+)."""
    _, states = after_mask(session(), inputs_of(session()))
    with pytest.raises(ProtocolError, match="it named a site twice"):
        states["amiens"].unmask(["amiens"] * 3)


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


def test_shares_of_another_index_are_refused() -> None:
    """A dealer whose envelope opens, but holds what belongs to somebody else."""
    header = session()
    server, states = after_advertise(header)
    u1 = server.close_advertise()
    honest, _ = states["amiens"].share_keys(u1, entropy())
    dealer = states["brno"]
    agreed = agree(dealer.keys.envelope, u1[0].envelope_key)
    shares = split(dealer.keys.seed, 2, 3, entropy())
    sealed = seal(agreed, honest.sid, sender="brno", receiver="amiens", seed_share=shares[2], key_share=shares[2])
    _, from_cluj = states["cluj"].share_keys(u1, entropy())
    with pytest.raises(SiteFault, match="site brno at ShareKeys: envelope holds shares that are not amiens's"):
        honest.mask({"brno": sealed, "cluj": from_cluj.sealed["amiens"]}, header.sites, inputs_of(header)["amiens"])


def test_a_server_that_shows_two_models_gets_no_envelope_open() -> None:
    """The model hash is in sid: sites that were shown different models never mask for each other."""
    one, two = session(model_hash=bytes(32)), session(model_hash=b"\1" * 32)
    first, second = after_advertise(one)[1], after_advertise(two)[1]
    u1 = [first["amiens"].own, first["brno"].own, second["cluj"].own]
    shared, _ = first["amiens"].share_keys(u1, entropy("a"))
    _, from_brno = first["brno"].share_keys(u1, entropy("b"))
    _, from_cluj = second["cluj"].share_keys(u1, entropy("c"))
    with pytest.raises(SiteFault, match="site cluj at ShareKeys: envelope failed to open"):
        shared.mask(
            {"brno": from_brno.sealed["amiens"], "cluj": from_cluj.sealed["amiens"]},
            one.sites,
            inputs_of(one)["amiens"],
        )


def test_an_input_of_another_type_or_shape_is_refused() -> None:
    for x in (np.zeros(5, np.uint32), np.zeros(6, np.int64), np.zeros((6, 1), np.uint32)):
        server, states = after_share(session())
        u2 = server.close_share()
        with pytest.raises(ProtocolError, match=r"an input is uint32\[6\], not"):
            states["amiens"].mask(server.envelopes_for("amiens"), u2, x)  # type: ignore[arg-type]


def test_a_roster_without_this_site_and_a_plain_session_get_no_keys() -> None:
    with pytest.raises(ProtocolError, match="does not name oslo"):
        advertise(session(), "oslo", entropy())
    with pytest.raises(ProtocolError, match="sums in the clear"):
        advertise(session(thresholds=Thresholds.plain(3, 2)), "brno", entropy())


def test_each_step_is_taken_once_even_after_a_refusal() -> None:
    """Regression: "one mask stream used twice in a round, so that the difference of two plaintexts falls out"."""
    server, states = after_advertise(session())
    u1 = server.close_advertise()
    shared = {}
    for site, state in states.items():
        shared[site], envelopes = state.share_keys(u1, entropy(site))
        server.share(envelopes)
    with pytest.raises(ProtocolError, match="taken the step ShareKeys of this attempt already"):
        states["amiens"].share_keys(u1, entropy())
    u2, x = server.close_share(), inputs_of(session())["amiens"]
    masked, _, _ = shared["amiens"].mask(server.envelopes_for("amiens"), u2, x)
    with pytest.raises(ProtocolError, match="taken the step MaskedInputCollection of this attempt already"):
        shared["amiens"].mask(server.envelopes_for("amiens"), u2, x + np.uint32(1))
    with pytest.raises(ProtocolError, match="it left out amiens"):
        masked.unmask(["brno", "cluj"])
    with pytest.raises(ProtocolError, match="taken the step Unmasking of this attempt already") as caught:
        masked.unmask(u2)
    assert "a second set could bare the update" in str(caught.value)


def test_a_wrong_order_is_no_method_at_all() -> None:
    """One type a phase: the type checker sees what these lines see."""
    steps = {"share_keys", "mask", "unmask"}
    offered = {kind: steps & set(dir(kind)) for kind in (Advertised, Shared, Masked, Unmasked)}
    assert offered == {Advertised: {"share_keys"}, Shared: {"mask"}, Masked: {"unmask"}, Unmasked: set()}


def test_a_site_releases_one_kind_for_each_and_keeps_its_own_key() -> None:
    """Regression: "a site that reveals both kinds of share for one id" (Flower SecAgg+)."""
    header = session(5)
    server, states = after_mask(header, inputs_of(header), lost=("dakar",))
    done, shares = states["amiens"].unmask(server.close_mask())
    assert set(shares.seed_shares) == {"amiens", "brno", "cluj", "essen"}
    assert set(shares.key_shares) == {"dakar"}
    assert done.u3 == ("amiens", "brno", "cluj", "essen")


def test_no_key_share_reaches_the_server_but_for_dropouts() -> None:
    """Regression: "key shares handed to the aggregator at set-up" (OpenFL 1.8)."""
    server, states = after_mask(session(), inputs_of(session()))
    u3 = server.close_mask()
    assert all(not state.unmask(u3)[1].key_shares for state in states.values())


def test_every_attempt_and_site_has_secrets_of_its_own() -> None:
    """Regression: "one secret in every kit" (NVFlare), "one secret shared by all clients" (APPFL)."""
    draw, seen = entropy(), set()
    for attempt in (1, 2):
        for site in session().sites:
            state, message = advertise(session(attempt=attempt), site, draw)
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
        _, _, y = states["amiens"].mask(server.envelopes_for("amiens"), u2, x)
        seen.append(y)
    np.testing.assert_array_equal(x, before)
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], x)


def test_secrets_stay_out_of_reprs() -> None:
    _, states = after_advertise(session())
    server, shared = after_share(session())
    u2 = server.close_share()
    masked, _, _ = shared["amiens"].mask(server.envelopes_for("amiens"), u2, inputs_of(session())["amiens"])
    _, shares = masked.unmask(u2)
    keys = states["amiens"].keys
    texts = repr(states["amiens"]) + repr(shared["amiens"]) + repr(masked) + repr(shares) + repr(keys)
    held = [share for each in masked.held.values() for share in (each.seed_share, each.key_share)]
    for secret in (keys.envelope, keys.mask, keys.seed, *shares.seed_shares.values()):
        assert repr(secret) not in texts
        assert secret.hex() not in texts
    assert all(str(share.value) not in texts for share in held)
