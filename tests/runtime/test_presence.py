from __future__ import annotations

import pytest

from fedseg.runtime.presence import Presence


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def presence(clock: Clock) -> Presence:
    return Presence(clock, absent_after_s=10)


def test_a_site_that_has_never_been_heard_is_waited_for_from_the_start(presence: Presence, clock: Clock) -> None:
    clock.seconds += 10
    assert presence.absent("ab") == frozenset()
    clock.seconds += 1
    assert presence.absent("ab") == {"a", "b"}
    assert (presence.there(), presence.unheard("ab"), presence.waited_s) == ([], ["a", "b"], 11)


def test_a_sign_of_life_counts_for_so_long(presence: Presence, clock: Clock) -> None:
    clock.seconds += 50
    presence.alive("a")
    assert (presence.there(), presence.absent("ab"), presence.unheard("ab")) == (["a"], frozenset("b"), ["b"])
    clock.seconds += 9
    assert presence.there() == ["a"]
    clock.seconds += 2
    assert (presence.there(), presence.absent("ab"), presence.unheard("ab")) == ([], frozenset("ab"), ["b"])
    presence.alive("a")
    assert (presence.there(), presence.absent("ab")) == (["a"], frozenset("b"))
