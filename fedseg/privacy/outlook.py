"""What a whole study would leave of a budget: reckoned before anything of it is charged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fedseg.errors import BudgetError
from fedseg.privacy.accounting import epsilon, histories, repeated
from fedseg.privacy.events import Event, RoundCharge
from fedseg.privacy.identity import Link, components

Budget = tuple[float, float]
"""(epsilon, delta)."""


@dataclass(frozen=True)
class Outlook:
    """The largest epsilon of any subject of a sampling frame. It depends on single subjects, so it stays at the site.

    Attributes:
        spent: By what was charged so far.
        after: With all that a study may still charge.
        delta: What both are measured at.
        limit: What `after` may be at most; None where nothing limits it.
        several_ids: Whether it is only beyond the limit because subjects go by several ids.
    """

    spent: float
    after: float
    delta: float
    limit: float | None
    several_ids: bool = False

    @property
    def fits(self) -> bool:
        """Whether the whole study is within the limit; up to it to the last bit, as where a round is charged."""
        return self.limit is None or self.after <= self.limit

    def require(self, whose: str, hint: str) -> None:
        """Refuse a study that does not fit.

        Args:
            whose: Whose limit it is, as in "this study's".
            hint: What to do, where the cause isn't a subject under several ids.

        Raises:
            BudgetError: It does not; says what is spent, what it would come to and what is allowed.
        """
        if self.fits or self.limit is None:
            return
        raise BudgetError(
            f"the whole study does not fit {whose} privacy budget: a subject here has spent epsilon "
            f"{_up(self.spent)}, and all rounds to come could take one to {_up(self.after)}, of {self.limit:g} allowed "
            f"(at delta {self.delta:g})" + (_SEVERAL if self.several_ids else ""),
            hint="nothing was charged, computed or sent; " + (_SEVERAL_HINT if self.several_ids else hint),
        )


_SEVERAL = "; it would fit if no subject were known under several ids that share scans or a subject_key"
_SEVERAL_HINT = (
    "give all ids of one pregnancy one subject_key, and each pregnancy the same one in every study; what was spent "
    "under its other ids stays spent"
)


def _up(epsilon: float) -> str:
    """Three digits, rounded up: never printed within a limit that it is beyond."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "unbounded"


def look_ahead(
    charges: Iterable[RoundCharge],
    known: Iterable[Link],
    frame: Collection[Link],
    ahead: Sequence[Event],
    budget: tuple[float | None, float],
) -> Outlook:
    """What a frame's most-spent subject has spent, and would have after a study.

    Args:
        charges: All that count towards the budget: one study's, or all of a hospital's.
        known: Keys that the hospital knows to be one subject.
        frame: Of each unit that would be charged, its keys; the first is the one that is charged.
        ahead: What the study may still charge.
        budget: The limit (None: there is none), and the delta of all.
    """
    limit, delta = budget
    charged = tuple(charges)
    links = (*known, *frame)
    spent, after = _largest(charged, links, frame, ahead, delta)
    apart = limit is not None and after > limit and _largest(charged, (), frame, ahead, delta)[1] <= limit
    return Outlook(spent, after, delta, limit, apart)


def _largest(
    charges: Sequence[RoundCharge], links: Iterable[Link], frame: Collection[Link], ahead: Sequence[Event], delta: float
) -> tuple[float, float]:
    groups = components(links)
    past = histories(charges, groups)
    people = Counter(groups.get(keys[0], keys[0]) for keys in frame)
    whole = {(past.get(person, ()), times) for person, times in people.items()}
    spent = max((epsilon(history, delta) for history, _ in whole), default=0.0)
    after = (epsilon((*history, *(repeated(each, times) for each in ahead)), delta) for history, times in whole)
    return spent, max(after, default=0.0)
