"""Whom a study's privacy rests on, in words: the server, the other sites, and in distributed mode their noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedseg.plan.manifest import Manifest
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import Event
from fedseg.report.numbers import printed
from fedseg.report.privacy_course import Aggregation
from fedseg.runtime.resolution import events_of
from fedseg.runtime.session import noise_share, thresholds_of

TWO = (
    "Quorum of two: a round could end with two contributors. Each of the two can subtract its own update from the "
    "published sum and so read the other's; the server could with the help of one of them. Only each site's own "
    "privacy noise, if any, protects its update from the other contributor."
)


@dataclass(frozen=True)
class Shares:
    """What is left of a distributed promise where more contributors than it allows for pool or leave out their noise.

    Attributes:
        tolerated: max(c, 1), so many other contributors of a smallest sum may.
        colluders: c, so many of them may work with the server.
        one_more: Epsilon where one more does: of h - 1 shares, the site's own always among them.
        alone: Epsilon of the site's own share: where masks come off.
    """

    tolerated: int
    colluders: int
    one_more: float
    alone: float

    @classmethod
    def of(cls, manifest: Manifest, spent: Collection[Sequence[Event]] = ()) -> Shares | None:
        """Those of a study; None where each site adds the whole noise.

        Args:
            manifest: The study.
            spent: Histories to measure, the largest counts; where there is none, all that the plan allows.
        """
        share, limits = noise_share(manifest), thresholds_of(manifest.plan, manifest.quorum)
        if share is None or share.honest == 1:
            return None
        paid = [history for history in spent if history] or [events_of(manifest)]
        delta = manifest.plan.privacy.delta

        def of(shares: int) -> float:
            return max(epsilon(_with(history, shares / share.honest), delta) for history in paid)

        return cls(max(limits.c, 1), limits.c, of(share.honest - 1), of(1))

    @property
    def condition(self) -> str:
        """What the promise hangs on, to be put after "as long as"."""
        alone = self.tolerated == 1
        pool = "pools what it knows" if alone else "pool what they know"
        leave = "leaves out its noise" if alone else "leave out their noise"
        server, nobody = (
            (", with or without the server,", "") if self.colluders else ("", ", and no site helps the server")
        )
        return f"at most {self.tolerated} of the other contributors of a sum {pool}{server} or {leave}{nobody}"

    @property
    def beyond(self) -> str:
        """What holds beyond that condition."""
        helpers = "a single site" if self.colluders == 0 else f"more than {self.colluders} of the sites"
        return (
            f"Where {self.tolerated + 1} of them do, it is epsilon {printed(self.one_more)}; where the server has the "
            f"help of {helpers}, masks may come off, and one site's own share promises epsilon {printed(self.alone)}."
        )


def _with(history: Sequence[Event], part: float) -> list[Event]:
    """The same steps with a part of the variance of distributed noise."""
    return [
        event._replace(noise_multiplier=event.noise_multiplier * math.sqrt(part)) if event.skellam else event
        for event in history
    ]


def aggregation(manifest: Manifest, shares: Shares | None) -> Aggregation:
    """What the server sees, and whom one trusts where masks hold and where they don't.

    Args:
        manifest: The study.
        shares: As `Shares.of` says.
    """
    plan = manifest.plan
    limits = thresholds_of(plan, manifest.quorum)
    secure = plan.aggregation.mode == "secure"
    helpers = f"at most {limits.c} of the sites help it" if limits.c else "no site helps it"
    words = (
        f"Secure aggregation: a server, even one that breaks the protocol, sees only sums over at least "
        f"{manifest.quorum} of {len(plan.sites)} sites, as long as {helpers}."
        if secure
        else "Plain aggregation: the server sees every site's own update."
    )
    with_masks, without = _trust(manifest, shares)
    return Aggregation(
        mode=plan.aggregation.mode,
        quorum=manifest.quorum,
        collusion=limits.c if secure else None,
        threshold=limits.t if secure else None,
        statement=words,
        two_contributors=TWO if manifest.quorum == 2 else None,
        accepted_because=plan.aggregation.accept_two_contributors,
        trust_with_masks=with_masks if secure else None,
        trust_without_masks=without,
    )


def _trust(manifest: Manifest, shares: Shares | None) -> tuple[str | None, str | None]:
    if not manifest.plan.private:
        return None, None
    if shares is None:
        everyone = (
            "the server, all other sites together and whoever gets the model are held to epsilon: each site adds all "
            "of its noise itself, and no other party has to be trusted"
        )
        return everyone, f"the same epsilon: {everyone}"
    held = (
        "the server, the other sites and whoever gets the model are held to epsilon, as long as "
        f"{shares.condition}. {shares.beyond}"
    )
    lost = (
        "not this epsilon: a single update holds one share of the noise only, which by itself promises epsilon "
        f"{printed(shares.alone)} at the same delta"
    )
    return held, lost
