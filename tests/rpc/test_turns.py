from __future__ import annotations

from contextlib import ExitStack

import pytest

from fedseg.errors import Unreachable
from fedseg.rpc.turns import CALLS_A_SITE, LIMITS, Turns, bounded_options


def test_a_site_s_calls_are_counted_apart_from_others_and_given_back() -> None:
    turns = Turns()
    with ExitStack() as under_way:
        for _ in range(CALLS_A_SITE):
            under_way.enter_context(turns.call("a"))
        with pytest.raises(Unreachable) as caught, turns.call("a"):
            pass
        assert caught.value.what == "this site has too many calls under way"
        assert caught.value.hint == "is it joined twice?"
        with turns.call("b"), turns.transfer("b", lambda: None):
            pass
    with turns.call("a"):
        pass


def test_a_call_that_fails_gives_its_turn_back() -> None:
    turns = Turns()
    for _ in range(2 * CALLS_A_SITE):
        with pytest.raises(ZeroDivisionError), turns.transfer("a", lambda: None):
            raise ZeroDivisionError


def test_a_newer_transfer_ends_the_older_and_only_that() -> None:
    turns, ended = Turns(), list[str]()
    with turns.transfer("b", lambda: ended.append("b")), ExitStack() as older:
        older.enter_context(turns.transfer("a", lambda: ended.append("first")))
        with turns.transfer("a", lambda: ended.append("second")):
            assert ended == ["first"]
            older.close()
            with turns.transfer("a", lambda: ended.append("third")):
                assert ended == ["first", "second"]
        with turns.transfer("a", lambda: ended.append("fourth")):
            assert ended == ["first", "second"]


def test_a_transfer_that_gets_no_turn_ends_none() -> None:
    turns, ended = Turns(), list[str]()
    with turns.transfer("a", lambda: ended.append("first")), ExitStack() as under_way:
        for _ in range(CALLS_A_SITE - 1):
            under_way.enter_context(turns.call("a"))
        with pytest.raises(Unreachable), turns.transfer("a", lambda: None):
            pass
        assert ended == []


def test_limits_take_the_place_of_what_they_bound_more_tightly() -> None:
    options = bounded_options()
    assert len(dict(options)) == len(options)
    assert set(LIMITS) <= set(options)
    assert ("grpc.so_reuseport", 0) in options
