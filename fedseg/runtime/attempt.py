"""One attempt at a round, as the coordinator holds it."""

from __future__ import annotations

from fedseg.federation.round import TABLES, Phase, Table
from fedseg.secagg.aggregator import PlainAggregator, SecureAggregator
from fedseg.secagg.messages import Advertisement, SessionHeader
from fedseg.store.study_db import RoundRow, RoundState


def without_sum(row: RoundRow) -> RoundState:
    """How an attempt ends that brought no sum: once shares were asked for, its round is over for good."""
    return "void" if row.state == "unmasking" else "abandoned"


class Attempt:
    """One attempt at a round: its session, its phase, and who has answered."""

    def __init__(self, header: SessionHeader, row: RoundRow, now: float) -> None:
        self.header = header
        self.row = row
        self.session = header.sid0()
        self.aggregator = SecureAggregator(header) if header.thresholds.secure else PlainAggregator(header)
        self.phase = Phase.ADVERTISE_KEYS
        self.since = now
        self.expected: frozenset[str] = frozenset(header.sites)
        self.arrived: set[str] = set()
        self.joined: set[str] = set()
        self.left: dict[str, str] = {}
        self.advertisements: tuple[Advertisement, ...] = ()
        self.named_absent: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The round's table of states."""
        return TABLES["secure" if self.header.thresholds.secure else "plain"]

    @property
    def need(self) -> int:
        """The fewest answers with which secure aggregation lets the phase end."""
        return self.header.t if self.phase is Phase.UNMASK else self.header.thresholds.quorum

    def enter(self, phase: Phase, now: float) -> None:
        """Close this phase and go on to the next, in which those who answered are asked.

        Raises:
            BelowQuorum: too few answered.
        """
        aggregator = self.aggregator
        if isinstance(aggregator, PlainAggregator):
            expected = aggregator.close_join() if phase is Phase.MASKED_INPUT else aggregator.close_mask()
        elif phase is Phase.SHARE_KEYS:
            self.advertisements = aggregator.close_advertise()
            expected = tuple(each.site for each in self.advertisements)
        elif phase is Phase.MASKED_INPUT:
            expected = aggregator.close_share()
        elif phase is Phase.UNMASK:
            expected = aggregator.close_mask()
        else:
            expected = tuple(sorted(self.expected))
        self.phase, self.expected, self.since, self.arrived = phase, frozenset(expected), now, set()
