"""The closed rounds of one log against its plan: none beyond it, and no evaluation before its rounds can be over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fedseg.secagg.messages import SessionHeader
from fedseg.store.audit_records import Closed, Fetched


@dataclass
class Progress:
    """How far a study has come, by one log.

    Attributes:
        exact: Whether its party knows of every closed round: the server does.
        rounds: Of the plan; 0 before it is pinned.
        closed: Rounds that its party has followed, or taken on the server's word.
        most: How many can be closed at most.
    """

    exact: bool
    rounds: int = 0
    closed: set[int] = field(default_factory=set)
    most: int = 0

    def opening_problems(self, header: SessionHeader) -> Iterator[str]:
        """What is wrong with opening a session here."""
        if header.evaluation and self.most < self.rounds:
            yield f"it is an evaluation, where at most {self.most} of the plan's {self.rounds} rounds are closed"
        elif not header.evaluation and len(self.closed) >= self.rounds > 0:
            yield f"it trains, where the {self.rounds} rounds of the plan are closed"

    def take(self, body: Closed | Fetched, back: bool) -> Iterator[str]:
        """Count a round; what is wrong with it.

        Args:
            body: What the log says of it.
            back: Whether rounds between may have led back to the model that this party held, as in a study that rolls
                back.
        """
        newest = max(self.closed, default=0)
        if body.round in self.closed:
            return
        if len(self.closed) >= self.rounds > 0:
            yield f"it is closed, where the {self.rounds} rounds of the plan were closed before"
        alone = self.exact or (isinstance(body, Closed) and not back)
        self.most += 1 if alone else max(body.round - newest, 0)
        self.closed.add(body.round)
