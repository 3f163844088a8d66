"""The roster that a site pins: what it is made of, what its fingerprint covers, and what is refused under it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from fedseg.errors import ProtocolError
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.signing import public_half, verify
from fedseg.secagg.site import advertise
from fedseg.secagg.thresholds import MAX_PLAIN_SITES

from .helpers import NAMES, PLAN_HASH, STUDY, entropy, identity, key, keys, roster, session

THREE = {site: public_half(private) for site, private in keys().items()}
SERVER = public_half(key("server"))
FRESH = public_half(key("fresh"))


def with_keys(**changes: bytes) -> Roster:
    return dataclasses.replace(roster(), keys=THREE | changes)


def test_sites_are_sorted_and_frozen_however_they_came() -> None:
    given = dict(reversed(THREE.items()))
    pinned = Roster(STUDY, PLAN_HASH, SERVER, given)
    assert pinned.sites == NAMES[:3]
    given["oslo"] = FRESH
    assert pinned == roster()
    assert (pinned.fingerprint, pinned.to_bytes()) == (roster().fingerprint, roster().to_bytes())
    with pytest.raises(TypeError):
        pinned.keys["oslo"] = FRESH  # type: ignore[index]


OTHERS: dict[str, Roster] = {
    "study": dataclasses.replace(roster(), study="other"),
    "plan": dataclasses.replace(roster(), plan_hash=bytes(32)),
    "server": dataclasses.replace(roster(), server_key=FRESH),
    "key": with_keys(brno=FRESH),
    "added": with_keys(oslo=FRESH),
    "gone": Roster(STUDY, PLAN_HASH, SERVER, {site: THREE[site] for site in NAMES[:2]}),
    "renamed": Roster(STUDY, PLAN_HASH, SERVER, {"amiens": THREE["amiens"], "b": THREE["brno"], "cluj": THREE["cluj"]}),
    "swapped": with_keys(brno=THREE["cluj"], cluj=THREE["brno"]),
}


def test_the_fingerprint_covers_everything() -> None:
    prints = {each.fingerprint for each in (roster(), *OTHERS.values())}
    assert len(prints) == 1 + len(OTHERS)
    assert {len(each) for each in prints} == {32}


@pytest.mark.parametrize(
    ("other", "sentences"),
    [
        ("study", ["it is another study's"]),
        ("plan", ["the plan is another one"]),
        ("server", ["the server has another key"]),
        ("key", ["brno has another key"]),
        ("added", ["oslo was added"]),
        ("gone", ["cluj is gone"]),
        ("renamed", ["brno is gone", "b was added"]),
        ("swapped", ["brno has another key", "cluj has another key"]),
    ],
)
def test_differences_in_words(other: str, sentences: list[str]) -> None:
    assert roster().differences(OTHERS[other]) == sentences
    assert roster().differences(roster()) == []


def test_bytes_and_back() -> None:
    for pinned in (roster(), roster(10), roster(sites=("Zürich", "orléans"), study="Étude fœtale"), OTHERS["gone"]):
        again = Roster.from_bytes(pinned.to_bytes())
        assert again == pinned
        assert again.fingerprint == pinned.fingerprint


def test_the_smallest_and_the_largest_roster_fit_the_wire() -> None:
    """A simulation's 10,000 sites with the longest names; their keys are no points, which nobody has asked yet."""
    alone = Roster(STUDY, PLAN_HASH, SERVER, {"amiens": THREE["amiens"]})
    many = {f"{number:064}": (number + 2).to_bytes(32, "little") for number in range(MAX_PLAIN_SITES)}
    for pinned in (alone, Roster("s" * 200, PLAN_HASH, SERVER, many)):
        assert Roster.from_bytes(pinned.to_bytes()) == pinned


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(roster(), study=""), "a study name is empty or not printable"),
        (lambda: dataclasses.replace(roster(), study="s" * 201), "a study name is longer than 200 bytes"),
        (lambda: dataclasses.replace(roster(), plan_hash=bytes(31)), "a plan hash has 32 bytes, not 31"),
        (lambda: dataclasses.replace(roster(), keys={}), "a roster has 1 to 10000 sites, not 0"),
        (
            lambda: dataclasses.replace(roster(), keys={f"s{n}": FRESH for n in range(MAX_PLAIN_SITES + 1)}),
            "a roster has 1 to 10000 sites, not 10001",
        ),
        (lambda: with_keys(**{"a\nb": FRESH}), "a site name is empty or not printable"),
        (lambda: with_keys(**{"s" * 65: FRESH}), "a site name is longer than 64 bytes"),
        (lambda: with_keys(oslo=b""), "a protocol key has 32 bytes, not 0"),
        (lambda: with_keys(oslo=bytes(32)), "a protocol key is a point of low order"),
        (lambda: with_keys(oslo=b"\xff" * 32), "a protocol key is not in canonical form"),
        (lambda: dataclasses.replace(roster(), server_key=bytes(32)), "a protocol key is a point of low order"),
        (lambda: dataclasses.replace(roster(), server_key=b"\xff" * 32), "a protocol key is not in canonical form"),
        (lambda: with_keys(oslo=THREE["brno"]), "two parties of the roster have one key"),
        (lambda: with_keys(oslo=SERVER), "two parties of the roster have one key"),
    ],
)
def test_rosters_that_cannot_be(make: Callable[[], Roster], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        make()


@pytest.mark.parametrize(
    "change",
    [
        {"roster": bytes(32)},
        {"study": "other"},
        {"plan_hash": bytes(32)},
        {"sites": ("amiens", "brno", "dakar")},
    ],
)
def test_a_header_must_be_of_the_roster_in_every_part(change: dict[str, Any]) -> None:
    roster().check_header(session())
    offered = dataclasses.replace(session(), **change)
    with pytest.raises(ProtocolError, match="not one of the roster that this site has confirmed") as caught:
        roster().check_header(offered)
    assert caught.value.where == "session header"
    assert caught.value.hint == "compare the roster's words with the coordinator again; nothing was sent"


def test_a_minted_site_changes_the_fingerprint_and_no_pinned_site_speaks_to_it() -> None:
    """The coordinator's CA can mint a key in a hospital's name; whoever pinned the hospital's own gives it nothing."""
    minted = with_keys(cluj=FRESH)
    assert minted.fingerprint != roster().fingerprint
    with pytest.raises(ProtocolError, match="not one of the roster that this site has confirmed"):
        advertise(session(roster=minted.fingerprint), identity("amiens"), entropy())
    with pytest.raises(ProtocolError, match="the roster does not hold the key of cluj"):
        Identity("cluj", key("cluj"), minted)


@pytest.mark.parametrize(("site", "private"), [("oslo", key("oslo")), ("brno", key("cluj")), ("brno", key("server"))])
def test_an_identity_is_one_of_its_roster(site: str, private: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"the roster does not hold the key of {site}"):
        Identity(site, private, roster())
    with pytest.raises(ProtocolError, match="a protocol key has 32 bytes, not 5"):
        Identity(site, b"short", roster())


def test_an_identity_signs_in_its_own_name() -> None:
    brno = identity("brno")
    signature = brno.sign("Close", bytes(32), b"said")
    verify(THREE["brno"], "Close", bytes(32), "brno", b"said", signature)
    assert brno.key.hex() not in repr(brno)
    assert repr(brno.key) not in repr(brno)
