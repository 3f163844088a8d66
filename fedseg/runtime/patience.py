"""Trying again while a server cannot be reached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from fedseg.errors import Interrupted, Unreachable
from fedseg.runtime import events

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 15.0

T = TypeVar("T")


def patiently(call: Callable[[], T], limit_s: float, *, notify: events.Notify, stop: threading.Event) -> T:
    """Call, and call again with growing pauses while the server cannot be reached.

    Args:
        call: Whatever may raise `Unreachable`; any other error passes at once.
        limit_s: Seconds of pauses after which `Unreachable` passes too.
        notify: Told of each failure.
        stop: Ends the patience when set.

    Raises:
        Unreachable: The server still cannot be reached.
        Interrupted: `stop` was set meanwhile.
    """
    waited, pause = 0.0, FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Unreachable as error:
            if stop.is_set():
                raise Interrupted("interrupted while the server could not be reached") from error
            if waited >= limit_s:
                raise
            notify(events.Waiting(f"{error.what}; trying again"))
            stop.wait(pause)
            waited, pause = waited + pause, min(2 * pause, LAST_PAUSE_S)
