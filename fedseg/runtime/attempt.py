"""One attempt at a round, as the coordinator holds it: whom it asks for what, and what their answers do."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from fedseg.errors import SiteFault
from fedseg.federation.exchange import (
    Confirm,
    Head,
    Instruction,
    Join,
    RingVector,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
)
from fedseg.federation.round import TABLES, Attendance, Phase, Table
from fedseg.secagg.aggregator import PlainAggregator, Rule, SecureAggregator
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
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
    def title(self) -> str:
        """What people call it."""
        return "evaluation" if self.row.evaluation else f"round {self.row.round}"

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

    @property
    def waiting(self) -> frozenset[str]:
        """Sites that are asked, have not answered and have not left."""
        return self.expected - self.arrived - self.left.keys()

    def attendance(self, absent: Set[str], *, quorum: int, overdue: bool) -> Attendance:
        """Who is asked, who has answered, who cannot any more.

        Args:
            absent: Sites that give no sign of life.
            quorum: Of the study.
            overdue: Whether the phase's deadline has passed.
        """
        return Attendance(
            expected=self.expected,
            arrived=frozenset(self.arrived),
            lost=frozenset(absent | self.left.keys()) & self.expected,
            need=self.need,
            overdue=overdue,
            # Nothing is at stake before keys are shared; a site that left the attempt comes back only in the next.
            patient=self.phase is Phase.ADVERTISE_KEYS and len(self.expected - self.left.keys()) >= quorum,
        )

    def instruction(self, site: str, head: Head) -> Instruction:
        """What a site should do.

        Args:
            site: Who asks.
            head: Where the study stands.
        """
        if site in self.left:
            return Wait(f"the next round: this site {self.left[site]}")
        if site in self.arrived or site not in self.expected:
            who = ", ".join(sorted(self.waiting)) or "the server"
            return Wait(f"{self.title}, {self.phase.value}: {who}")
        return self._asked(site, head)

    def _asked(self, site: str, head: Head) -> Instruction:
        aggregator = self.aggregator
        if self.phase is Phase.ADVERTISE_KEYS:
            return Join(self.header, head)
        if isinstance(aggregator, PlainAggregator):
            return Submit(self.session, self.sharers, {})
        if self.phase is Phase.SHARE_KEYS:
            return ShareKeys(self.session, self.advertisements)
        if self.phase is Phase.MASKED_INPUT:
            return Submit(self.session, self.sharers, aggregator.envelopes_for(site))
        if self.phase is Phase.CONSISTENCY:
            return Confirm(self.session, self.contributors)
        if self.phase is Phase.UNMASK:
            return Unmask(self.session, self.signatures)
        return Wait("the next round")

    # What sites answer; SiteFault where that is another site's message, or one that this mode has not.

    def advertise(self, site: str, advertisement: Advertisement | None) -> None:
        """Step 1; None in plain mode."""
        if isinstance(self.aggregator, PlainAggregator):
            self.aggregator.join(site)
        elif advertisement is None or advertisement.site != site:
            raise SiteFault(site, self.phase.value, "the advertisement is missing or another site's")
        else:
            self.aggregator.advertise(advertisement)
        self.joined.add(site)

    def share_keys(self, site: str, envelopes: Envelopes) -> None:
        """Step 2."""
        self._secure(site, envelopes).share(envelopes)

    def mask(self, message: MaskedInput, vector: RingVector) -> None:
        """Step 3, of the message's own site: added to the sum. The same upload again changes nothing."""
        if self.aggregator.mask(message, vector):
            self.row = replace(self.row, bytes_received=self.row.bytes_received + vector.nbytes)

    def confirm(self, site: str, message: Consistency) -> None:
        """Step 4."""
        self._secure(site, message).consistency(message)

    def unmask(self, site: str, shares: Shares) -> None:
        """Step 5."""
        self._secure(site, shares).shares(shares)

    def _secure(self, site: str, message: Envelopes | Consistency | Shares) -> SecureAggregator:
        """The aggregator of masked vectors, for a message that is the caller's own."""
        if message.site != site or not isinstance(self.aggregator, SecureAggregator):
            raise SiteFault(site, self.phase.value, "a message of another site, or in plain mode")
        return self.aggregator

    # How it goes on.

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
