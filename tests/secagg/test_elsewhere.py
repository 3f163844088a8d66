"""What went wrong in other systems, one test each: named after where it was seen.

The list is in the design of secure aggregation ("What is wrong elsewhere, and must be impossible here"). Flower is its
SecAgg+, Fed-BioMed its LOM and its own encoding, NVFlare its homomorphic mode, APPFL its masks.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest

from fedseg.errors import PlanError, ProtocolError, SiteFault
from fedseg.federation.exchange import Unmask
from fedseg.secagg import masking
from fedseg.secagg import site as site_module
from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.masking import add_mask, pair_mask_key, self_mask_key
from fedseg.secagg.messages import Phase, SessionHeader, Shares
from fedseg.secagg.reference import aggregate
from fedseg.secagg.sealing import agree, open_envelope, public_key
from fedseg.secagg.shamir import Share, combine, split
from fedseg.secagg.site import Masked, Signed, advertise
from fedseg.secagg.thresholds import Thresholds

from .helpers import (
    NAMES,
    Vector,
    after_advertise,
    after_confirm,
    after_mask,
    after_share,
    after_unmask,
    entropy,
    identity,
    inputs_of,
    keys,
    ring_sum,
    roster_of,
    session,
)


def stream(key: bytes) -> bytes:
    vector = np.zeros(4, np.uint32)
    add_mask(vector, key, 1)
    return vector.tobytes()


def test_flower_7522_mask_seeds_keep_all_256_bits() -> None:
    """There, 256 bits were folded to 32 for a Mersenne Twister: 2^32 masks, all of which can be tried."""
    flipped = [bytes(32)] + [(1 << bit).to_bytes(32, "big") for bit in range(256)]
    assert len({stream(self_mask_key(seed, bytes(32), "brno")) for seed in flipped}) == 257
    assert len({stream(pair_mask_key(seed, bytes(32), "brno", "cluj")) for seed in flipped}) == 257
    assert len({stream(key) for key in flipped}) == 257


def test_flower_no_site_reveals_both_kinds_of_share() -> None:
    """There, the server sent two lists, and a name in both was answered with both kinds of share."""
    header = session(5)
    _, states = after_unmask(header, inputs_of(header), lost=["dakar"])
    for state in states.values():
        shares = state.message
        assert set(shares.seed_shares) == {"amiens", "brno", "cluj", "essen"}
        assert set(shares.key_shares) == {"dakar"}
    share = Share(1, 5).to_bytes()
    with pytest.raises(SiteFault, match="site amiens at Unmasking: both kinds of share for brno"):
        Shares("amiens", {"brno": share}, {"brno": share}, bytes(64))


def test_flower_the_server_names_no_list_of_shares() -> None:
    """Which kind of share a site gives follows from the sets that it signed: there is nowhere to ask for another."""
    assert list(inspect.signature(Signed.unmask).parameters) == ["self", "signatures"]
    assert {field.name for field in fields(Unmask)} == {"session", "signatures"}


@pytest.mark.parametrize("t", [0, 1, 2, 3, 5])
def test_flower_a_threshold_of_one_is_refused(t: int) -> None:
    """There, the server set any threshold; with 1 every share is the secret. Here t = 4 follows from the roster."""
    header = session(5)
    with pytest.raises(
        PlanError, match=r"thresholds t = \d, m = 3 are not those of 5|quorum 3 is impossible with 5 sites"
    ):
        Thresholds(5, 1, t, 3)
    data = header.to_bytes()
    with pytest.raises(ProtocolError):
        SessionHeader.from_bytes(data[:-4] + t.to_bytes(2, "big") + data[-2:])


def test_flower_a_secret_is_not_shared_with_a_threshold_of_one() -> None:
    with pytest.raises(ProtocolError, match="cannot share among 3 with threshold 1"):
        split(bytes(32), 1, 3, entropy())
    with pytest.raises(ProtocolError, match="1 shares cannot give back a secret of threshold 1"):
        combine([Share(1, 5)], 1)


def test_flower_one_one_one_is_not_three() -> None:
    """There, `[1, 1, 1]` passed for three sites, and one share three times for three shares."""
    header = session()
    server, advertised = after_advertise(header)
    u1 = server.close_advertise()
    with pytest.raises(ProtocolError, match="it named a site twice"):
        advertised["amiens"].share_keys([u1[0]] * 3, entropy())
    _, shared = after_share(header)
    with pytest.raises(ProtocolError, match="it named a site twice"):
        shared["amiens"].mask({}, ["amiens"] * 3, inputs_of(header)["amiens"])
    _, masked = after_mask(header, inputs_of(header))
    with pytest.raises(ProtocolError, match="it named a site twice"):
        masked["amiens"].confirm(["amiens"] * 3)
    share = split(bytes(32), 3, 3, entropy())[0]
    with pytest.raises(ProtocolError, match="one index is among the shares twice"):
        combine([share] * 3, 3)


@pytest.mark.parametrize(
    ("field", "forged"),
    [
        ("envelope_key", public_key(b"E" * 32)),
        ("mask_key", public_key(b"M" * 32)),
        ("seed_commitment", bytes(32)),
        ("signature", bytes(64)),
    ],
    ids=["envelope key", "mask key", "seed commitment", "signature"],
)
def test_flower_keys_relayed_unsigned_are_refused(field: str, forged: bytes) -> None:
    """There, the server relayed public keys that nobody had signed, and could put in its own."""
    header = session()
    server, advertised = after_advertise(header)
    u1 = server.close_advertise()
    changed = replace(u1[1], **{field: forged})  # type: ignore[arg-type]
    with pytest.raises(SiteFault, match="site brno at AdvertiseKeys: the signature of brno in AdvertiseKeys does"):
        advertised["amiens"].share_keys([u1[0], changed, u1[2]], entropy())
    with pytest.raises(SiteFault, match="site brno at AdvertiseKeys: the signature of brno in AdvertiseKeys does"):
        SecureAggregator(header, roster_of(header)).advertise(changed)


def test_flower_nothing_is_released_before_the_sites_agree_on_the_survivors() -> None:
    """There was no consistency round: told of two lists, sites gave both kinds of share for one site.

    Here the two halves sign two lists, and neither half hears of t signatures on its own.
    """
    header = session(5)
    inputs = inputs_of(header)
    _, masked = after_mask(header, inputs)
    lists = {site: NAMES[:4] if site in NAMES[:2] else NAMES[:5] for site in header.sites}
    signed = {site: masked[site].confirm(lists[site]) for site in header.sites}
    for site, state in signed.items():
        half = {peer: signed[peer].message.signature for peer in lists[site] if lists[peer] == lists[site]}
        everybody = {peer: signed[peer].message.signature for peer in lists[site]}
        with pytest.raises(ProtocolError, match=r"[23] signatures are fewer than 4"):
            replace(state).unmask(half)
        with pytest.raises(SiteFault, match="in ConsistencyCheck does not verify"):
            replace(state).unmask(everybody)


def test_flower_no_share_is_to_be_had_without_a_signature() -> None:
    """The only state that gives shares is one that has signed, and it wants the signatures of others."""
    assert not hasattr(Masked, "unmask")
    header = session()
    _, signed = after_confirm(header, inputs_of(header))
    with pytest.raises(ProtocolError, match="it left out or altered the signature of amiens"):
        signed["amiens"].unmask({})


def test_flower_the_server_cannot_pick_the_graph() -> None:
    """There, the server chose who shares with whom. Here that is everybody in the roster that the site has pinned."""
    header = session(10)
    cohort = session(4, sites=(*NAMES[:3], "jena"))
    with pytest.raises(ProtocolError, match="the session is not one of the roster that this site has confirmed"):
        advertise(cohort, identity("amiens", header), entropy())
    server, advertised = after_advertise(header)
    u1 = server.close_advertise()
    with pytest.raises(ProtocolError, match="6 sites are fewer than 7"):
        replace(advertised["amiens"]).share_keys(u1[:6], entropy())
    shared = advertised["amiens"].share_keys(u1[:7], entropy())
    assert set(shared.message.sealed) == set(NAMES[1:7])
    assert shared.own.seed_share.index == header.index("amiens") == 1


def test_flower_the_server_cannot_pick_whose_masks_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    header = session(5)
    server, states = after_share(header)
    u2 = server.close_share()
    used: list[tuple[str, str]] = []

    def record(agreed: bytes, sid: bytes, site: str, peer: str) -> bytes:
        used.append((site, peer))
        return pair_mask_key(agreed, sid, site, peer)

    monkeypatch.setattr(site_module, "pair_mask_key", record)
    for site in u2:
        states[site].mask(server.envelopes_for(site), u2, inputs_of(header)[site])
    assert Counter(used) == Counter((site, peer) for site in u2 for peer in u2 if site != peer)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_flower_an_even_number_of_shares_reconstructs(n: int) -> None:
    """There, an even number of shares below n ended in an IndexError."""
    secret, t = bytes(range(32)), Thresholds.of(n).t
    shares = split(secret, t, n, entropy())
    for size in range(t, n + 1):
        for some in combinations(shares, size):
            assert combine(some, t) == secret
    header = session(n)
    inputs = inputs_of(header)
    for silent in range(n - t + 1):
        total, u3 = aggregate(
            header,
            roster_of(header),
            keys(n),
            inputs,
            entropy(),
            dict.fromkeys(NAMES[:silent], Phase.UNMASKING),
        )
        np.testing.assert_array_equal(total, ring_sum([inputs[site] for site in u3]))


def test_flower_a_dropout_before_share_keys_leaves_the_others_their_sum() -> None:
    """There, a site that was gone before ShareKeys ended the round in a KeyError."""
    header = session(5)
    inputs = inputs_of(header)
    total, u3 = aggregate(header, roster_of(header), keys(5), inputs, entropy(), {"cluj": Phase.SHARE_KEYS})
    assert u3 == ("amiens", "brno", "dakar", "essen")
    np.testing.assert_array_equal(total, ring_sum([inputs[site] for site in u3]))


@pytest.mark.parametrize("largest", [3.5, 8.5, 100.0, 1e6])
def test_flower_and_fed_biomed_nothing_is_clipped_in_silence(largest: float) -> None:
    """There, coordinates beyond +-8 (or +-3) became +-8 (or +-3), and nobody was told."""
    update = np.array([largest, -largest, 0.25, 0.0], np.float32)
    wide = Encoding(3, 2.0 * largest, 1, 4)
    encoded = wide.encode(update, 1, bytes(32))
    mean = wide.decode(encoded.vector, [1])
    assert not encoded.rescaled
    np.testing.assert_allclose(mean.update, update, atol=1.01 / wide.scale, rtol=1e-6)
    narrow = Encoding(3, 1.0, 1, 4)
    shortened = narrow.encode(update, 1, bytes(32))
    assert shortened.rescaled
    assert shortened.norm == pytest.approx(np.linalg.norm(update.astype(float)))
    # What is brought within the bound keeps its direction: no coordinate is cut off by itself.
    decoded = narrow.decode(shortened.vector, [1]).update
    np.testing.assert_allclose(decoded, update / np.linalg.norm(update), atol=1.01 / narrow.scale)


@pytest.mark.parametrize("weight", [-1, 0, 11, 1_000_000])
def test_fed_biomed_weights_out_of_range_are_refused(weight: int) -> None:
    """There, a weight above the range was warned about, and wrapped."""
    code = Encoding(3, 2.0, 10, 4)
    with pytest.raises(ProtocolError, match=f"weight {weight} is not within 1 to 10"):
        code.encode(np.ones(4, np.float32), weight, bytes(32))
    with pytest.raises(ProtocolError, match="a contributor's weight is not within 1 to 10"):
        code.decode(code.encode(np.ones(4, np.float32), 1, bytes(32)).vector, [weight])


def masks_of(monkeypatch: pytest.MonkeyPatch, header: SessionHeader) -> tuple[Counter[tuple[bytes, int]], list[Vector]]:
    """Every stream that the sites of one attempt add or subtract, and what they send."""
    used: Counter[tuple[bytes, int]] = Counter()

    def record(vector: Vector, key: bytes, sign: int) -> None:
        used[key, sign] += 1
        add_mask(vector, key, sign)

    server, states = after_share(header)
    u2 = server.close_share()
    monkeypatch.setattr(site_module, "add_mask", record)
    inputs = inputs_of(header)
    sent = [states[site].mask(server.envelopes_for(site), u2, inputs[site])[1] for site in u2]
    monkeypatch.setattr(site_module, "add_mask", add_mask)
    return used, sent


def test_fed_biomed_no_mask_stream_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, one stream masked two vectors of a round, so that their difference was that of the plaintexts.

    Here each stream masks one vector; but for that of a pair, which one of the two adds and the other subtracts.
    """
    streams: Counter[bytes] = Counter()
    for header in (session(5), session(5, attempt=2), session(5, round=5), session(5, model_hash=bytes(32))):
        used, sent = masks_of(monkeypatch, header)
        assert set(used.values()) == {1}
        signs = Counter(key for key, _ in used)
        assert Counter(signs.values()) == {1: 5, 2: 10}
        streams.update(signs.keys())
        inputs = list(inputs_of(header).values())
        for one, two in combinations(range(5), 2):
            assert not np.any(sent[one] - sent[two] == inputs[one] - inputs[two])
    assert set(streams.values()) == {1}


def test_fed_biomed_two_attempts_over_one_update_share_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = masks_of(monkeypatch, session(3))
    _, second = masks_of(monkeypatch, session(3, attempt=2))
    assert not any(np.any(one == two) for one, two in zip(first, second, strict=True))


def test_no_key_is_used_with_two_counters() -> None:
    """Every key begins at counter zero, and never twice: a stream is made whole by one call, however long it is."""
    short, long = np.zeros(masking.PIECE, np.uint32), np.zeros(2 * masking.PIECE + 7, np.uint32)
    add_mask(short, bytes(32), 1)
    add_mask(long, bytes(32), 1)
    np.testing.assert_array_equal(short, long[: masking.PIECE])
    assert not np.array_equal(long[: masking.PIECE], long[masking.PIECE : 2 * masking.PIECE])


def test_openfl_no_share_reaches_the_server_before_unmasking() -> None:
    """There, key shares went to the aggregator at set-up. Here it sees sealed envelopes until t sites have signed."""
    header = session(5)
    inputs = inputs_of(header)
    _, advertised = after_advertise(header)
    _, shared = after_share(header)
    _, masked = after_mask(header, inputs)
    _, signed = after_confirm(header, inputs)
    steps = (advertised, shared, masked, signed)
    seen = b"".join(state.message.to_bytes() for states in steps for state in states.values())
    for state in advertised.values():
        for secret in (state.keys.envelope, state.keys.mask, state.keys.seed):
            assert secret not in seen
    dealt = [shares for state in masked.values() for shares in state.held.values()]
    assert len(dealt) == 25
    for shares in dealt:
        for share in (shares.seed_share, shares.key_share):
            assert share.value.to_bytes(33, "big") not in seen


def test_nvflare_and_appfl_secrets_differ_between_sites_and_attempts() -> None:
    """There, one secret lay in every kit (NVFlare's HE), or all clients shared one (APPFL)."""
    draw, seen, made = entropy(), set(), 0
    for header in (session(5), session(5, attempt=2), session(5, round=5)):
        for site in header.sites:
            state = advertise(header, identity(site, header), draw)
            message = state.message
            secrets = {state.keys.envelope, state.keys.mask, state.keys.seed}
            seen |= secrets | {message.envelope_key, message.mask_key, message.seed_commitment}
            made += 6
    assert len(seen) == made == 90


def test_nvflare_no_site_opens_an_envelope_of_two_others() -> None:
    """With one secret in every kit, the server and any one site read all. Here a third site's keys open nothing."""
    header = session(5)
    _, states = after_advertise(header)
    _, shared = after_share(header)
    sender, receiver, *others = header.sites
    sealed, sid = shared[sender].message.sealed[receiver], shared[sender].sid
    true = agree(states[receiver].keys.envelope, states[sender].message.envelope_key)
    assert open_envelope(true, sid, sender, receiver, sealed)
    for other in others:
        for mine in (states[other].keys.envelope, states[other].keys.mask, states[other].keys.seed):
            for peer in (sender, receiver):
                for theirs in (states[peer].message.envelope_key, states[peer].message.mask_key):
                    with pytest.raises(ProtocolError, match="envelope failed to open"):
                        open_envelope(agree(mine, theirs), sid, sender, receiver, sealed)


def test_appfl_masks_are_whole_numbers_of_the_whole_ring() -> None:
    """There, float masks were added: what is large shows through them, and rounding stays when they cancel.

    Here a mask moves every bit, and what is sent for one input is that for another plus their exact difference.
    """
    header = session(3, dimension=4096)
    inputs = inputs_of(header)
    largest = dict.fromkeys(header.sites, np.full(header.length, 2**31 - 1, np.uint32))
    for values in (inputs, largest):
        server, states = after_share(header)
        u2 = server.close_share()
        x = values["amiens"]
        none = np.zeros_like(x)
        _, y = replace(states["amiens"]).mask(server.envelopes_for("amiens"), u2, x)
        _, mask = replace(states["amiens"]).mask(server.envelopes_for("amiens"), u2, none)
        np.testing.assert_array_equal(y - mask, x)
        set_bits = np.unpackbits(y.view(np.uint8)).reshape(-1, 32).mean(axis=0)
        # Half of 4,097 bits, give or take six standard deviations.
        assert np.all(abs(set_bits - 0.5) < 6 * 0.5 / np.sqrt(header.length))
