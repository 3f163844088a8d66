"""The session's header: what cannot be, what a server cannot choose, and that every field is compared."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.integers import IntegerCode
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.secagg.statistics import StatisticsCode
from fedseg.secagg.thresholds import Thresholds

from .helpers import NAMES, PLAN_HASH, STUDY, roster, session


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan_hash": b""}, "a plan hash has 32 bytes, not 0"),
        ({"model_hash": bytes(31)}, "a model hash has 32 bytes, not 31"),
        ({"roster": bytes(33)}, "a roster's fingerprint has 32 bytes, not 33"),
        ({"attempt": 0}, "round 4, attempt 0 cannot be"),
        ({"round": 2**32}, "round 4294967296, attempt 1 cannot be"),
        ({"study": "é" * 101}, "a study name is longer than 200 bytes"),
        ({"sites": ("amiens", "a\tb", "cluj")}, "a site name is empty or not printable"),
        ({"attempt": 3}, "round 4, attempt 3 cannot be"),
        ({"round": -1}, "round -1, attempt 1 cannot be"),
        ({"study": ""}, "a study name is empty"),
        ({"sites": ("amiens", "cluj", "brno")}, "the roster is not sorted"),
        ({"sites": ("amiens", "brno", "brno")}, "names a site twice"),
        ({"evaluation": True, "scored": True}, "a session has one kind of code"),
    ],
)
def test_headers_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        dataclasses.replace(session(), **change)


@pytest.mark.parametrize(
    "change",
    [{"t": 1}, {"m": 1}, {"t": 3}, {"c": 2}, {"scale": 1.0}, {"scale": float("nan")}, {"ring_bits": 16}, {"clip": 4.0}],
)
def test_a_server_cannot_choose_thresholds_or_ring(change: dict[str, Any]) -> None:
    """Regression: "a threshold of 1 accepted" (Flower SecAgg+)."""
    with pytest.raises(PlanError):
        dataclasses.replace(session(), **change)


def test_thresholds_of_another_study_are_refused_on_the_wire_too() -> None:
    data = session().to_bytes()
    assert data[-4:] == b"\0\2\0\3"
    with pytest.raises(ProtocolError, match="thresholds t = 1, m = 3 are not those of 3 sites"):
        SessionHeader.from_bytes(data[:-4] + b"\0\1\0\3")


OTHERS: list[dict[str, Any]] = [
    {"study": "other"},
    {"plan_hash": bytes(32)},
    {"round": 5},
    {"attempt": 2},
    {"model_hash": bytes(32)},
    {"encoding": Encoding(3, 2.0, 10, 6)},
    {"encoding": Encoding(3, 2.1, 10, 5)},
    {"encoding": Encoding(3, 2.0, 11, 5)},
    {"encoding": Encoding(3, 2.0, 10, 5, scored=True)},
    {"encoding": IntegerCode(3, 2.0, 5, 1024.0)},
    {"encoding": StatisticsCode(3, 10, 5, 2.0)},
    {"roster": bytes(32)},
    {"sites": ("amiens", "brno", "dakar")},
    {"thresholds": Thresholds.of(3, 1)},
    {"thresholds": Thresholds.of(3, 0, accept_two=True)},
    {"thresholds": Thresholds.plain(3, 3)},
]


@pytest.mark.parametrize("change", OTHERS)
def test_every_field_is_in_sid0_and_is_compared(change: dict[str, Any]) -> None:
    mine, offered = session(), session(**change)
    assert mine.sid0() != offered.sid0()
    with pytest.raises(ProtocolError, match="is not the one this site expects"):
        mine.check_offer(offered)


def test_no_field_is_left_out_of_the_comparison() -> None:
    """`ring_bits`, `scale`, `t` and `m` follow from the others; a header with another of them cannot be built."""
    mine, followed = session(), {"ring_bits", "scale", "t", "m"}
    offers = [session(**change) for change in OTHERS]
    differing = {
        item.name
        for offer in offers
        for item in dataclasses.fields(SessionHeader)
        if getattr(mine, item.name) != getattr(offer, item.name)
    }
    assert differing | followed == {item.name for item in dataclasses.fields(SessionHeader)}


def test_an_equal_offer_is_taken_and_a_different_one_named() -> None:
    session().check_offer(SessionHeader.from_bytes(session().to_bytes()))
    with pytest.raises(ProtocolError, match="the session's model hash is not the one"):
        session().check_offer(session(model_hash=bytes(32)))


def test_unknown_sites_have_no_index() -> None:
    assert [session().index(site) for site in NAMES[:3]] == [1, 2, 3]
    with pytest.raises(ProtocolError, match="the roster of study atlas does not name oslo"):
        session().index("oslo")


def test_the_session_says_which_roster_it_is_of() -> None:
    assert session().roster == roster().fingerprint
    pinned = Roster(STUDY, PLAN_HASH, roster().server_key, dict(roster().keys))
    assert session().roster == pinned.fingerprint
