from __future__ import annotations

import threading

import pytest

from fedseg.errors import Interrupted, LinkError, Unreachable
from fedseg.runtime import events
from fedseg.runtime.patience import patiently


class Still(threading.Event):
    """An event that notes how long it was waited for, and lets no time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        return self.is_set()


def failing(times: int, stop: Still) -> list[events.Event]:
    told: list[events.Event] = []
    left = [Unreachable("no server answers")] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answer"

    assert patiently(call, 60, notify=told.append, stop=stop) == "answer"
    return told


def test_it_tries_again_with_growing_pauses() -> None:
    stop = Still()
    assert failing(7, stop) == 7 * [events.Waiting("no server answers; trying again")]
    assert stop.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_patience_ends() -> None:
    stop = Still()
    with pytest.raises(Unreachable, match="no server answers"):
        failing(50, stop)
    assert 60 <= sum(stop.pauses) < 75


def test_a_stop_ends_it_at_once() -> None:
    stop = Still()
    stop.set()
    with pytest.raises(Interrupted, match="while the server could not be reached"):
        failing(1, stop)
    assert stop.pauses == []


def test_any_other_error_passes_at_once() -> None:
    def call() -> None:
        raise LinkError("it doesn't accept this site's certificate")

    stop = Still()
    with pytest.raises(LinkError, match="certificate"):
        patiently(call, 60, notify=lambda _: None, stop=stop)
    assert stop.pauses == []
