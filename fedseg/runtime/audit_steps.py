"""One step of an attempt, as one log tells it: whether it could stand there, and whose signatures it holds.

Signatures are checked under the keys of the roster that the log had pinned. Valid ones are kept whatever else is wrong
with the record: they are what `audit_compare` holds against the logs of those who gave them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fedseg.errors import ProtocolError
from fedseg.secagg.messages import Consistency, MaskedInput, SessionHeader
from fedseg.secagg.roster import Roster
from fedseg.store.audit_records import (
    Aborted,
    Begin,
    Body,
    Closed,
    Confirmed,
    Evaluated,
    Input,
    Masked,
    Opened,
    Received,
    Unmask,
)

Sites = tuple[str, ...]
Step = Masked | Received | Confirmed | Unmask | Aborted


@dataclass(frozen=True)
class Vote:
    """A site's valid signature of step 4, in anybody's log."""

    site: str
    key: bytes
    round: int
    sid: str
    sets: tuple[Sites, Sites]
    where: str


@dataclass(frozen=True)
class Contribution:
    """A site's valid signature over its input, in anybody's log."""

    site: str
    key: bytes
    round: int
    sid: str
    digest: str
    where: str


Told = str | Vote | Contribution
"""Something that is wrong, or a signature that was found valid."""


@dataclass
class Attempt:
    """One attempt at a round, as one log tells it.

    Attributes:
        steps: The first record of each kind, in the order in which they were written.
    """

    header: SessionHeader
    roster: Roster
    where: str
    steps: dict[type[Body], Body] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For sentences."""
        return f"round {self.header.round}, attempt {self.header.attempt}"

    @property
    def place(self) -> tuple[int, int]:
        """Round and attempt."""
        return self.header.round, self.header.attempt

    @property
    def plain(self) -> bool:
        """Whether nothing is masked in it."""
        return not self.header.thresholds.secure

    @property
    def joined(self) -> Masked | Received | None:
        """Step 3, which names sid and U2."""
        step = self.steps.get(Masked) or self.steps.get(Received)
        return step if isinstance(step, Masked | Received) else None

    @property
    def sid(self) -> str | None:
        """The session's name, once step 3 has it."""
        return self.joined.sid if self.joined else None

    @property
    def u2(self) -> Sites | None:
        """The sites that shared their keys, as step 3 has them."""
        return self.joined.u2 if self.joined else None

    @property
    def u3(self) -> Sites | None:
        """The contributors, as far as this party was told before the sum was published."""
        for kind in (Unmask, Confirmed, Received):
            step = self.steps.get(kind)
            if isinstance(step, Unmask | Confirmed):
                return step.u3
            if isinstance(step, Received):
                return tuple(sorted(step.inputs))
        return None


# By (role, secure): after which steps a step may stand.
_BEFORE: Mapping[tuple[str, bool], Mapping[type[Body], tuple[type[Body], ...]]] = {
    ("site", True): {
        Masked: (Opened,),
        Confirmed: (Masked,),
        Unmask: (Confirmed,),
        Aborted: (Opened, Masked, Confirmed, Unmask),
        Closed: (Opened, Masked, Confirmed, Unmask, Aborted),
        Evaluated: (Opened, Masked, Confirmed, Unmask, Aborted),
    },
    ("site", False): {
        Masked: (Opened,),
        Aborted: (Opened, Masked),
        Closed: (Opened, Masked, Aborted),
        Evaluated: (Opened, Masked, Aborted),
    },
    ("server", True): {
        Received: (Opened,),
        Unmask: (Received,),
        Aborted: (Opened, Received, Unmask),
        Closed: (Unmask,),
        Evaluated: (Unmask,),
    },
    ("server", False): {
        Received: (Opened,),
        Aborted: (Opened, Received),
        Closed: (Received,),
        Evaluated: (Received,),
    },
}
_NAMES: Mapping[type[Body], str] = {
    Opened: "its opening",
    Masked: "step 3 (masked)",
    Received: "step 3 (received)",
    Confirmed: "step 4 (confirmed)",
    Unmask: "step 5 (unmask)",
    Closed: "its close",
    Evaluated: "its close as an evaluation",
    Aborted: "its abort",
}


def name_of(body: Body) -> str:
    """What findings call a step."""
    return _NAMES[type(body)]


def order_problems(attempt: Attempt, body: Body, role: str, newest: bool) -> Iterator[str]:
    """What is wrong with a step standing where it does.

    Args:
        attempt: With the steps before.
        body: The step.
        role: Whose log it is.
        newest: Whether no later attempt has been opened.
    """
    kind, last = type(body), next(reversed(attempt.steps))
    before = _BEFORE[role, not attempt.plain].get(kind)
    if before is None:
        yield f"{_NAMES[kind]} has no place in a {role}'s log of a {'plain' if attempt.plain else 'secure'} session"
    elif kind in attempt.steps:
        yield f"{_NAMES[kind]} stands twice" + ("" if attempt.steps[kind] == body else ", and says two things")
    elif last not in before:
        yield f"{_NAMES[kind]} comes right after {_NAMES[last]}"
    elif not newest and kind in (Masked, Received, Confirmed, Unmask):
        yield f"{_NAMES[kind]} comes after a later attempt was opened"


def read_step(attempt: Attempt, body: Step, begin: Begin, where: str) -> Iterator[Told]:
    """What one step holds: problems, and valid signatures.

    Args:
        attempt: With the steps before.
        body: The step.
        begin: Whose log it is.
        where: File and line.
    """
    match body:
        case Masked():
            yield from _common(attempt, body.sid, body.u2)
            yield from _unnamed("U2", body.u2, begin)
            yield from _input(attempt, begin.party, body, body.sid, where)
        case Received():
            yield from _common(attempt, body.sid, body.u2)
            yield from outside("the inputs", tuple(body.inputs), "U2", body.u2)
            for site in body.inputs:
                yield from _input(attempt, site, body.inputs[site], body.sid, where)
        case Confirmed():
            yield from _sets(attempt, body)
            yield from _unnamed("U3", body.u3, begin)
            yield from _vote(attempt, begin.party, body, body.signature, where)
        case Unmask():
            yield from _sets(attempt, body)
            yield from _signers(attempt, body, begin)
            for site in body.signatures:
                yield from _vote(attempt, site, body, body.signatures[site], where)


def _common(attempt: Attempt, sid: str, u2: Sites) -> Iterator[str]:
    if attempt.plain != (sid == attempt.header.sid0().hex()):
        yield "sid is sid0 in plain mode, and only there"
    yield from outside("U2", u2, "the roster", attempt.roster.sites)
    yield from too_few("U2", u2, attempt)


def _sets(attempt: Attempt, body: Confirmed | Unmask) -> Iterator[str]:
    if (body.sid, body.u2) != (attempt.sid, attempt.u2):
        yield f"sid or U2 in {name_of(body)} is not that of step 3"
    earlier = attempt.u3
    if earlier is not None and body.u3 != earlier:
        yield f"the contributors in {name_of(body)} ({listed(body.u3)}) are not those before it ({listed(earlier)})"
    yield from outside("U3", body.u3, "U2", body.u2)
    yield from too_few("U3", body.u3, attempt)


def _signers(attempt: Attempt, body: Unmask, begin: Begin) -> Iterator[str]:
    signers = tuple(body.signatures)
    yield from outside("the signers of step 4", signers, "U3", body.u3)
    if len(signers) < attempt.header.t:
        yield f"{len(signers)} signatures of step 4, where t = {attempt.header.t} must be had"
    own = attempt.steps.get(Confirmed)
    if isinstance(own, Confirmed) and body.signatures.get(begin.party) != own.signature:
        yield f"the signatures of step 4 lack the one that {begin.party} gave"


def _unnamed(what: str, sites: Sites, begin: Begin) -> Iterator[str]:
    if begin.party not in sites:
        yield f"{what} does not name {begin.party}"


def outside(what: str, sites: Sites, of: str, all_sites: Sites) -> Iterator[str]:
    """Sites that are named where they can't be."""
    strangers = sorted(set(sites) - set(all_sites))
    if strangers:
        yield f"{what} with {listed(strangers)}, whom {of} does not name"


def too_few(what: str, sites: Sites, attempt: Attempt) -> Iterator[str]:
    """Fewer sites than any step goes on with."""
    least = attempt.header.thresholds.quorum
    if len(sites) < least:
        yield f"{what} has {len(sites)} sites, fewer than max(t, m) = {least}"


def _input(attempt: Attempt, site: str, message: Masked | Input, sid: str, where: str) -> Iterator[Told]:
    signed = MaskedInput(site, bytes.fromhex(message.digest), bytes.fromhex(message.signature))
    try:
        signed.verify(bytes.fromhex(sid), attempt.roster)
    except ProtocolError:
        yield f"the signature of {site} over its input is not valid"
    else:
        yield Contribution(site, attempt.roster.keys[site], attempt.header.round, sid, message.digest, where)


def _vote(attempt: Attempt, site: str, body: Confirmed | Unmask, signature: str, where: str) -> Iterator[Told]:
    try:
        message = Consistency(site, bytes.fromhex(signature))
        message.verify(bytes.fromhex(body.sid), attempt.roster, body.u2, body.u3)
    except ProtocolError:
        yield f"the signature of {site} over U2 and U3 is not valid"
    else:
        yield Vote(site, attempt.roster.keys[site], attempt.header.round, body.sid, (body.u2, body.u3), where)


def listed(sites: Iterable[str]) -> str:
    """Names for a sentence."""
    return ", ".join(sites) or "nobody"
