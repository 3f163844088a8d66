"""One round as a table of states.

A round goes through the phases of secure aggregation (Bonawitz et al. 2017); in plain mode it skips the two that
exchange keys and the two that agree on the contributors and take the masks off. `decide` looks at who has answered and
says which event has happened; the tables say which phase follows. Time and presence come in as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Phase(Enum):
    """Where a round stands."""

    ADVERTISE_KEYS = "AdvertiseKeys"
    SHARE_KEYS = "ShareKeys"
    MASKED_INPUT = "MaskedInputCollection"
    CONSISTENCY = "ConsistencyCheck"
    UNMASK = "Unmasking"
    CLOSED = "closed"
    ABANDONED = "abandoned"


class Event(Enum):
    """What moves a round on."""

    COMPLETE = "complete"
    SHORT = "short"


Table = Mapping[tuple[Phase, Event], Phase]

SECURE: Table = {
    (Phase.ADVERTISE_KEYS, Event.COMPLETE): Phase.SHARE_KEYS,
    (Phase.ADVERTISE_KEYS, Event.SHORT): Phase.ABANDONED,
    (Phase.SHARE_KEYS, Event.COMPLETE): Phase.MASKED_INPUT,
    (Phase.SHARE_KEYS, Event.SHORT): Phase.ABANDONED,
    (Phase.MASKED_INPUT, Event.COMPLETE): Phase.CONSISTENCY,
    (Phase.MASKED_INPUT, Event.SHORT): Phase.ABANDONED,
    (Phase.CONSISTENCY, Event.COMPLETE): Phase.UNMASK,
    (Phase.CONSISTENCY, Event.SHORT): Phase.ABANDONED,
    (Phase.UNMASK, Event.COMPLETE): Phase.CLOSED,
    (Phase.UNMASK, Event.SHORT): Phase.ABANDONED,
}

PLAIN: Table = {
    (Phase.ADVERTISE_KEYS, Event.COMPLETE): Phase.MASKED_INPUT,
    (Phase.ADVERTISE_KEYS, Event.SHORT): Phase.ABANDONED,
    (Phase.MASKED_INPUT, Event.COMPLETE): Phase.CLOSED,
    (Phase.MASKED_INPUT, Event.SHORT): Phase.ABANDONED,
}

TABLES: Mapping[Literal["secure", "plain"], Table] = {"secure": SECURE, "plain": PLAIN}


@dataclass(frozen=True)
class Attendance:
    """Who is asked in a phase, who has answered, who cannot any more.

    Attributes:
        expected: Sites asked in this phase.
        arrived: Sites whose answer is in.
        lost: Sites that withdrew, restarted or gave no sign of life.
        need: The fewest answers with which the round may go on.
        overdue: The phase's deadline has passed.
        patient: Wait for lost sites until the deadline while fewer than `need` have answered (nothing is at stake yet).
    """

    expected: frozenset[str]
    arrived: frozenset[str]
    lost: frozenset[str]
    need: int
    overdue: bool
    patient: bool = False


def decide(attendance: Attendance) -> Event | None:
    """Which event has happened, or None to wait.

    A phase is complete when nobody is left to wait for and at least `need` answered; short when `need` is out of reach.
    """
    enough = len(attendance.arrived) >= attendance.need
    waiting = attendance.expected - attendance.arrived - attendance.lost
    if attendance.overdue or (not waiting and enough):
        return Event.COMPLETE if enough else Event.SHORT
    if attendance.patient or len(attendance.arrived | waiting) >= attendance.need:
        return None
    return Event.SHORT
