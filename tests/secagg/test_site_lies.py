"""A server that lies: each lie is refused by every site before a secret moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.messages import Advertisement, Consistency, SessionHeader
from fedseg.secagg.sealing import public_key
from fedseg.secagg.site import Signed
from fedseg.secagg.thresholds import Thresholds

from .helpers import (
    after_advertise,
    after_confirm,
    after_mask,
    after_share,
    entropy,
    identity,
    inputs_of,
    session,
)

U1 = Sequence[Advertisement]
TEN, FIVE = session(10), session(5)


def other(site: str, number: int = 9) -> Advertisement:
    """Well-formed, and signed by nobody."""
    envelope_key, mask_key = (public_key(bytes([number + step] * 32)) for step in (0, 1))
    return Advertisement(site, envelope_key, mask_key, bytes(32), bytes(64))


def signed_by(
    site: str, envelope_key: bytes, mask_key: bytes, header: SessionHeader = TEN, commitment: bytes = bytes(32)
) -> Advertisement:
    return Advertisement.signed(header, identity(site, header), envelope_key, mask_key, commitment)


LIES_ABOUT_U1: list[tuple[Callable[[U1], U1], str]] = [
    (lambda u1: u1[:4], "4 sites are fewer than 7"),
    (lambda u1: u1[:6], "6 sites are fewer than 7"),
    (lambda u1: u1[1:], "it left out amiens, which it asked"),
    (lambda u1: [*u1, u1[3]], "it named a site twice"),
    (lambda u1: [u1[0]] * 10, "it named a site twice"),
    (lambda u1: [*u1[:-1], other("oslo")], "oslo was not in the step before"),
    (lambda u1: [other("amiens"), *u1[1:]], "it altered the advertisement of amiens"),
    (lambda u1: [dataclasses.replace(u1[0], seed_commitment=bytes(32)), *u1[1:]], "it altered the advertisement"),
    (
        lambda u1: [signed_by("amiens", public_key(b"a" * 32), public_key(b"b" * 32)), *u1[1:]],
        "it altered the advertisement of amiens",
    ),
    (
        lambda u1: [
            signed_by("amiens", public_key(b"a" * 32), public_key(b"b" * 32), commitment=u1[0].seed_commitment),
            *u1[1:],
        ],
        "it altered the advertisement of amiens",
    ),
    (lambda u1: [dataclasses.replace(u1[0], signature=bytes(64)), *u1[1:]], "it altered the advertisement of amiens"),
    (
        lambda u1: [*u1[:-1], signed_by("jena", u1[-1].envelope_key, u1[1].mask_key)],
        "site jena at AdvertiseKeys: its key is the same as that of brno",
    ),
    (
        lambda u1: [*u1[:-1], signed_by("jena", u1[1].mask_key, u1[-1].mask_key)],
        "site jena at AdvertiseKeys: its key is the same as that of brno",
    ),
    (
        lambda u1: [*u1[:-1], signed_by("jena", u1[0].mask_key, u1[-1].mask_key)],
        "site jena at AdvertiseKeys: its key is the same as that of amiens",
    ),
]


@pytest.mark.parametrize(("lie", "message"), LIES_ABOUT_U1)
def test_lies_about_u1(lie: Callable[[U1], U1], message: str) -> None:
    server, states = after_advertise(TEN)
    with pytest.raises(ProtocolError, match=message) as caught:
        states["amiens"].share_keys(lie(server.close_advertise()), entropy())
    assert isinstance(caught.value, SiteFault) or caught.value.where == "ShareKeys"


@pytest.mark.parametrize(
    "forge",
    [
        lambda _: other("jena"),
        lambda own: dataclasses.replace(own, envelope_key=public_key(b"x" * 32)),
        lambda own: dataclasses.replace(own, mask_key=public_key(b"x" * 32)),
        lambda own: dataclasses.replace(own, seed_commitment=bytes(32)),
        lambda own: dataclasses.replace(own, envelope_key=own.mask_key, mask_key=own.envelope_key),
        lambda own: dataclasses.replace(own, signature=bytes(64)),
        lambda own: signed_by("jena", own.envelope_key, own.mask_key, session(10, attempt=2)),
        lambda own: dataclasses.replace(signed_by("izmir", own.envelope_key, own.mask_key), site="jena"),
    ],
)
def test_keys_that_their_site_did_not_sign_for_this_session(forge: Callable[[Advertisement], Advertisement]) -> None:
    server, states = after_advertise(TEN)
    *u1, last = server.close_advertise()
    with pytest.raises(SiteFault, match="site jena at AdvertiseKeys: the signature of jena in AdvertiseKeys does not"):
        states["amiens"].share_keys([*u1, forge(last)], entropy())


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
    server, states = after_share(FIVE)
    server.close_share()
    incoming = {sender: server.envelopes_for("amiens").get(sender, bytes(86)) for sender in u2 if sender != "amiens"}
    with pytest.raises(ProtocolError, match=message):
        states["amiens"].mask(incoming, u2, inputs_of(FIVE)["amiens"])


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
    _, states = after_mask(FIVE, inputs_of(FIVE))
    with pytest.raises(ProtocolError, match=message) as caught:
        states["amiens"].confirm(u3)
    assert caught.value.where == "ConsistencyCheck"


def test_a_site_of_the_roster_that_was_not_in_the_step_before_is_a_stranger() -> None:
    """jena advertised nothing, izmir shared nothing: neither can be in a later list."""
    server, advertised = after_advertise(TEN)
    u1 = server.close_advertise()[:-1]
    shared = {site: advertised[site].share_keys(u1, entropy(site)) for site in TEN.sites[:-1]}
    incoming = {site: state.message.sealed["amiens"] for site, state in shared.items() if site != "amiens"}
    with pytest.raises(ProtocolError, match="jena was not in the step before"):
        dataclasses.replace(shared["amiens"]).mask(incoming | {"jena": bytes(86)}, TEN.sites, inputs_of(TEN)["amiens"])
    del incoming["izmir"]
    masked, _ = shared["amiens"].mask(incoming, TEN.sites[:-2], inputs_of(TEN)["amiens"])
    with pytest.raises(ProtocolError, match="izmir was not in the step before"):
        masked.confirm(TEN.sites[:-1])


def test_a_plan_that_asks_for_more_contributors_binds_every_list() -> None:
    header = session(6, thresholds=Thresholds.of(6, quorum=6))
    server, states = after_advertise(header)
    with pytest.raises(ProtocolError, match="5 sites are fewer than 6"):
        states["amiens"].share_keys(server.close_advertise()[:5], entropy())
    _, masked = after_mask(header, inputs_of(header))
    with pytest.raises(ProtocolError, match="5 sites are fewer than 6"):
        masked["amiens"].confirm(header.sites[:5])


Lie = Callable[[dict[str, bytes], dict[str, Signed]], dict[str, bytes]]


def without(*sites: str) -> Lie:
    return lambda signatures, _: {site: each for site, each in signatures.items() if site not in sites}


def signed_instead(u2: Sequence[str], u3: Sequence[str], sid: bytes | None = None) -> Lie:
    """What brno would have signed had it been shown other sets, or been in another session."""

    def lie(signatures: dict[str, bytes], states: dict[str, Signed]) -> dict[str, bytes]:
        brno = states["brno"]
        return signatures | {"brno": Consistency.signed(sid or brno.sid, brno.identity, u2, u3).signature}

    return lie


STAYED = ("amiens", "brno", "cluj", "essen")
LIES_ABOUT_SIGNATURES: list[tuple[Lie, str]] = [
    (without("essen"), "3 signatures are fewer than 4"),
    (without("amiens"), "it left out or altered the signature of amiens"),
    (without(*STAYED), "it left out or altered the signature of amiens"),
    (lambda told, _: told | {"amiens": told["brno"]}, "it left out or altered the signature of amiens"),
    (lambda told, _: told | {"dakar": told["brno"]}, "dakar cannot have signed"),
    (lambda told, _: told | {"oslo": told["brno"]}, "oslo cannot have signed"),
    (lambda told, _: told | {"brno": told["cluj"]}, "site brno at ConsistencyCheck: the signature of brno in Cons"),
    (lambda told, _: told | {"brno": bytes(64)}, "site brno at ConsistencyCheck: the signature of brno in Cons"),
    (lambda told, _: told | {"brno": b""}, "a signature has 64 bytes, not 0"),
    (signed_instead(FIVE.sites, FIVE.sites), "site brno at ConsistencyCheck: .* does not verify"),
    (signed_instead(STAYED, STAYED), "site brno at ConsistencyCheck: .* does not verify"),
    (signed_instead(FIVE.sites, STAYED, bytes(32)), "site brno at ConsistencyCheck: .* does not verify"),
]


@pytest.mark.parametrize(("lie", "message"), LIES_ABOUT_SIGNATURES)
def test_lies_about_signatures(lie: Lie, message: str) -> None:
    server, states = after_confirm(FIVE, inputs_of(FIVE), lost=("dakar",))
    told = lie(dict(server.close_consistency()), states)
    with pytest.raises(ProtocolError, match=message):
        states["amiens"].unmask(told)
    with pytest.raises(ProtocolError, match="taken the step Unmasking of this attempt already"):
        states["amiens"].unmask(told)


def test_the_lies_about_signatures_are_lies() -> None:
    server, states = after_confirm(FIVE, inputs_of(FIVE), lost=("dakar",))
    honest = dict(server.close_consistency())
    assert signed_instead(FIVE.sites, STAYED)(honest, states) == honest
    assert set(states["amiens"].unmask(honest).message.seed_shares) == set(STAYED)


def test_t_signatures_suffice_where_a_contributor_is_silent() -> None:
    server, states = after_confirm(FIVE, inputs_of(FIVE), silent=("cluj",))
    done = states["amiens"].unmask(server.close_consistency())
    assert set(done.message.seed_shares) == set(FIVE.sites)
    assert not done.message.key_shares


def test_one_one_one_is_not_three() -> None:
    """Regression: "`[1, 1, 1]` counted as three" (Flower SecAgg+)."""
    _, states = after_mask(session(), inputs_of(session()))
    with pytest.raises(ProtocolError, match="it named a site twice"):
        states["amiens"].confirm(["amiens"] * 3)
