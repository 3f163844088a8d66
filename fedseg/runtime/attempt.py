"""One attempt at a round, as the coordinator holds it."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg.federation.round import TABLES, Phase, Table
from fedseg.secagg.aggregator import PlainAggregator, Rule, SecureAggregator
from fedseg.secagg.messages import Advertisement, SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.store.study_db import RoundRow, RoundState

ATTEMPTS = 2


def without_sum(row: RoundRow) -> RoundState:
    """How an attempt ends that brought no sum: once shares were asked for, its round is over for good."""
    return "void" if row.state == "unmasking" else "abandoned"


class Attempt:
    """One attempt at a round: its session, its phase, and who has answered.

    Args:
        header: The session.
        roster: The study's.
        row: How the study's book knows it.
        now: Seconds, monotonic.
        rule: In plain mode, what is published in place of the sum.
    """

    def __init__(self, header: SessionHeader, roster: Roster, row: RoundRow, now: float, rule: Rule | None) -> None:
        self.header = header
        self.row = row
        self.session = header.sid0()
        self.aggregator = (
            SecureAggregator(header, roster) if header.thresholds.secure else PlainAggregator(header, roster, rule=rule)
        )
        self.phase = Phase.ADVERTISE_KEYS
        self.since = now
        self.expected: frozenset[str] = frozenset(header.sites)
        self.arrived: set[str] = set()
        self.joined: set[str] = set()
        self.left: dict[str, str] = {}
        self.advertisements: tuple[Advertisement, ...] = ()
        self.sharers: tuple[str, ...] = ()
        self.contributors: tuple[str, ...] = ()
        self.signatures: Mapping[str, bytes] = {}
        self.named_absent: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The round's table of states."""
        return TABLES["secure" if self.header.thresholds.secure else "plain"]

    @property
    def need(self) -> int:
        """The fewest answers with which secure aggregation lets the phase end."""
        late = self.phase in (Phase.CONSISTENCY, Phase.UNMASK)
        return self.header.t if late else self.header.thresholds.quorum

    @property
    def sid(self) -> bytes:
        """What contributions are bound to: sid0 in plain mode, where there is no U1."""
        return self.aggregator.sid if isinstance(self.aggregator, SecureAggregator) else self.session

    def enter(self, phase: Phase, now: float) -> None:
        """Close this phase and go on to the next, in which those who answered are asked.

        Raises:
            BelowQuorum: too few answered.
        """
        self.expected, self.arrived = frozenset(self._close(phase)), set()
        self.phase, self.since = phase, now

    def _close(self, phase: Phase) -> tuple[str, ...]:
        """End the phase before `phase`: who is asked in that one."""
        aggregator = self.aggregator
        if isinstance(aggregator, PlainAggregator):
            if phase is Phase.MASKED_INPUT:
                self.sharers = aggregator.close_join()
                return self.sharers
            self.contributors = aggregator.close_mask()
            return self.contributors
        if phase is Phase.SHARE_KEYS:
            self.advertisements = aggregator.close_advertise()
            return tuple(each.site for each in self.advertisements)
        if phase is Phase.MASKED_INPUT:
            self.sharers = aggregator.close_share()
            return self.sharers
        if phase is Phase.CONSISTENCY:
            self.contributors = aggregator.close_mask()
            return self.contributors
        if phase is Phase.UNMASK:
            self.signatures = aggregator.close_consistency()
            return tuple(self.signatures)
        return tuple(sorted(self.expected))
