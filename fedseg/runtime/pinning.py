"""The roster that a site speaks under: compared with what its operator confirmed, pinned, and refused when it changes.

The server only relays the sites' keys. Whoever runs it also runs the study's CA, and could put a site of its own in a
hospital's place; so nothing is sent under a roster that an operator has not confirmed by a way that isn't the server's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fedseg.errors import Interrupted, ProtocolError, RosterError
from fedseg.federation.exchange import Enrolled
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.patience import patiently
from fedseg.runtime.roster_words import words
from fedseg.runtime.session import roster_of
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import public_half

POLL_S = 2.0
PATIENCE_S = 900.0

APPROVE = "fedseg client approve-roster --state DIR --fingerprint HEX"


class Pins(Protocol):
    """Where a site keeps what its operator confirmed; `runtime.site_folder.SiteFolder` on disk."""

    @property
    def protocol_key(self) -> bytes:
        """The site's private Ed25519 key."""

    @property
    def roster(self) -> Roster | None:
        """The pinned roster; None before the first was confirmed."""

    @property
    def approved(self) -> bytes | None:
        """The fingerprint that the operator approved last without being asked; None where there is none."""

    def pin_roster(self, roster: Roster) -> None:
        """Keep a confirmed roster, fsynced; the earlier one is forgotten."""


@dataclass(frozen=True)
class Incomplete:
    """These sites of the plan have yet to enrol: there is no roster."""

    missing: tuple[str, ...]


@dataclass(frozen=True)
class Unconfirmed:
    """The first whole roster, or the first under another version of the plan, which nobody here has confirmed."""

    roster: Roster


@dataclass(frozen=True)
class Confirmed:
    """The roster is the pinned one, or the one whose fingerprint was approved."""

    roster: Roster


Offer = Incomplete | Unconfirmed | Confirmed


def check_offer(
    enrolled: Enrolled, manifest: Manifest, site: str, *, key: bytes, pinned: Roster | None, approved: bytes | None
) -> Offer:
    """Judge what the server says of who has enrolled. Study and plan are those that the operator accepted.

    Args:
        enrolled: The server's word.
        manifest: The study, as agreed.
        site: This site.
        key: Its public protocol key.
        pinned: The roster it speaks under; None before the first.
        approved: Fingerprint that its operator approved.

    Raises:
        RosterError: if the roster names a stranger, gives this site another key or none, holds an impossible key,
            differs from the pinned one in more than the plan without approval, or is not the one that was approved.
    """
    _check_names(enrolled, manifest, site, key)
    missing = tuple(name for name in manifest.plan.site_names if name not in enrolled.keys)
    if missing and pinned is None:
        return Incomplete(missing)
    offered = _roster(enrolled, manifest)
    if offered == pinned or (offered.fingerprint == approved and not missing):
        return Confirmed(offered)
    if pinned is not None and replace(pinned, plan_hash=offered.plan_hash) != offered:
        raise _changed(pinned, offered, approved)
    if approved is not None and (pinned is None or approved != pinned.fingerprint):
        raise _other_than_approved(offered, approved)
    return Unconfirmed(offered)


def roster_in_force(pins: Pins, manifest: Manifest, site: str, enrolled: Enrolled) -> Roster:
    """The roster that a site in mid-study may go on under; an approved change is pinned.

    Raises:
        RosterError: as `check_offer`, or if nobody has confirmed a roster here.
    """
    offer = _judge(pins, manifest, site, enrolled)
    if not isinstance(offer, Confirmed):
        raise RosterError("nobody at this site has confirmed the roster", hint=f"compare it, then: {APPROVE}")
    return _pin(pins, offer.roster)


def await_roster(
    pins: Pins,
    manifest: Manifest,
    site: str,
    fetch: Callable[[], Enrolled],
    *,
    ask: Callable[[Roster], bool],
    notify: events.Notify,
    stop: threading.Event,
) -> Roster:
    """Wait until every site of the plan has enrolled and this site's operator has confirmed the roster; pin it.

    Args:
        pins: What was confirmed before, and where it is kept.
        manifest: The study, as agreed.
        site: This site.
        fetch: Asks the server; tried again while it cannot be reached.
        ask: Shows a roster and asks, once for each that is offered. False: nobody could be asked, so an approval is
            waited for; whoever says no raises.
        notify: Told what is waited for.
        stop: Set by Ctrl-C.

    Raises:
        RosterError: as `check_offer`.
        Interrupted: `stop` was set: nothing was sent.
    """
    shown: Roster | None = None
    while True:
        offer = _judge(pins, manifest, site, patiently(fetch, PATIENCE_S, notify=notify, stop=stop))
        match offer:
            case Confirmed():
                return _pin(pins, offer.roster)
            case Incomplete():
                notify(events.Waiting(f"{', '.join(offer.missing)} to enrol"))
            case Unconfirmed():
                if offer.roster != shown and ask(offer.roster):
                    return _pin(pins, offer.roster)
                shown = offer.roster
                notify(events.Waiting("this site's operator to approve the roster"))
        if stop.wait(POLL_S):
            raise Interrupted("stopped before a roster was confirmed: nothing was computed or sent")


def _judge(pins: Pins, manifest: Manifest, site: str, enrolled: Enrolled) -> Offer:
    key = public_half(pins.protocol_key)
    return check_offer(enrolled, manifest, site, key=key, pinned=pins.roster, approved=pins.approved)


def _pin(pins: Pins, roster: Roster) -> Roster:
    if roster != pins.roster:
        pins.pin_roster(roster)
    return roster


def _check_names(enrolled: Enrolled, manifest: Manifest, site: str, key: bytes) -> None:
    strangers = [name for name in enrolled.keys if name not in manifest.plan.sites]
    if strangers:
        raise RosterError(
            f"the server's roster holds {', '.join(sorted(strangers))}, whom the plan does not name",
            hint="nothing was sent; talk to the coordinator: the server is broken, or lies",
        )
    if site not in enrolled.keys:
        raise RosterError(
            f"the server's roster does not hold this site, {site}, though it has enrolled",
            hint="nothing was sent; talk to the coordinator",
        )
    if enrolled.keys[site] != key:
        raise RosterError(
            f"the server gives this site, {site}, a key that is not its own",
            hint=f"nothing was sent; talk to the coordinator and the other sites: {site} was enrolled elsewhere, "
            "or somebody speaks in its name",
        )


def _roster(enrolled: Enrolled, manifest: Manifest) -> Roster:
    try:
        return roster_of(manifest, enrolled)
    except ProtocolError as error:
        raise RosterError(
            f"the server offers a roster that cannot be: {error.what}", hint="nothing was sent; talk to the coordinator"
        ) from None


def _changed(pinned: Roster, offered: Roster, approved: bytes | None) -> RosterError:
    changes = "; ".join(f"{change} ({_meaning(change)})" for change in pinned.differences(offered))
    fingerprints = {"confirmed": pinned.fingerprint, "offered": offered.fingerprint}
    if approved is not None and approved != pinned.fingerprint:
        fingerprints["approved since"] = approved
    named = ", ".join(f"{what} {fingerprint.hex()}" for what, fingerprint in fingerprints.items())
    return RosterError(
        f"the roster is not the one that was confirmed here: {changes}; {named}",
        hint="nothing was sent under it; ask whoever changed, by a way that isn't this connection, then compare with "
        f"the other hospitals the words that it has now ({_spoken(offered)}), and approve: {APPROVE}",
    )


def _spoken(roster: Roster) -> str:
    return " ".join(words(roster.fingerprint))


def _meaning(change: str) -> str:
    if change.startswith("the plan"):
        return "it was extended; this site agreed to that at `join`, perhaps by --yes"
    if change.startswith("the server"):
        return "it was set up anew, or it is another server"
    if change.endswith("has another key"):
        return "it enrolled again, or somebody speaks in its name"
    return "the server has lost its enrolment, or hides it"


def _other_than_approved(offered: Roster, approved: bytes) -> RosterError:
    return RosterError(
        f"the server offers roster {offered.fingerprint.hex()}, approved here is {approved.hex()}: "
        "the digits may be mistyped, a site may have enrolled again since, or somebody may have put a site of their "
        "own in a hospital's place",
        hint="nothing was sent; compare with the other hospitals the words that it has now "
        f"({_spoken(offered)}), by a way that isn't this connection, and approve what is right: {APPROVE}",
    )
