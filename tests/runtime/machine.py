"""One site's `Participation` on a machine that can lose its power at any write, and a round for it to take part in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fedseg.runtime.evidence import MemoryEvidence, roster_entry
from fedseg.runtime.participation import Participation
from fedseg.runtime.simulation import SiteMemory
from fedseg.secagg.aggregator import SecureAggregator
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.site import Advertised, Masked, Shared, Signed, Unmasked, advertise
from fedseg.secagg.state import State, load
from tests.runtime.threads import contradictions
from tests.secagg.helpers import (
    NAMES,
    STUDY,
    Vector,
    entropy,
    identity,
    inputs_of,
    roster_of,
)

ME = NAMES[0]
STEPS = ("join", "share_keys", "submit", "confirm", "unmask")
WRITES = {"join": 2, "share_keys": 1, "submit": 3, "confirm": 2, "unmask": 2, "end": 1}
STATES = {"join": Advertised, "share_keys": Shared, "submit": Masked, "confirm": Signed, "unmask": Unmasked}
LOGGED = ["session", "masked", "confirmed", "unmask"]


class PowerCut(Exception):
    """The machine stopped at a write."""


@dataclass
class Machine:
    """A site's disk and the process on it, which a power cut ends.

    Attributes:
        cuts: For each cut, how many writes go well before it, counted from the one before; and whether the write at
            which it comes has reached the disk.
        random: Draws of randomness, beside writes, in order.
    """

    roster_of: SessionHeader
    may_reuse: bool = False
    cuts: list[tuple[int, bool]] = field(default_factory=list)
    memory: SiteMemory = field(default_factory=SiteMemory)
    log: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity, self._draw = identity(ME, self.roster_of), entropy("me")
        self.restart()

    def restart(self) -> None:
        """A process begins, as often as a cut lets it."""
        while True:
            try:
                self.at_work = Participation(self.identity, self, self, entropy=self._random, may_reuse=self.may_reuse)
                return
            except PowerCut:
                pass

    def insist(self, call: Callable[[Participation], Any]) -> Any:
        """What the site answers, asked again after every cut."""
        while True:
            try:
                return call(self.at_work)
            except PowerCut:
                self.restart()

    @property
    def state(self) -> State | None:
        """What the disk says."""
        kept = self.memory.session()
        return None if kept is None else load(kept, self.identity)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [body for each, body in self.log if each == kind]

    # The ports.

    def session(self) -> bytes | None:
        return self.memory.session()

    def save_session(self, data: bytes) -> None:
        self._write(lambda: self.memory.save_session(data))
        self.story.append(type(load(data, self.identity)).__name__)

    def masked(self, session: bytes) -> Vector | None:
        return self.memory.masked(session)

    def save_masked(self, session: bytes, vector: Vector) -> None:
        self._write(lambda: self.memory.save_masked(session, vector.copy()))

    def scored(self, model: str) -> str | None:
        return self.memory.scored(model)

    def save_scored(self, model: str, digest: str) -> None:
        self._write(lambda: self.memory.save_scored(model, digest))

    def entries(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return tuple(self.log)

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        self._write(lambda: self.log.append((kind, body)))

    def _random(self, size: int) -> bytes:
        self.story.append("random")
        return self._draw(size)

    def _write(self, write: Callable[[], None]) -> None:
        left, reached = self.cuts[0] if self.cuts else (1, True)
        if left > 0 or reached:
            write()
        if self.cuts:
            self.cuts[0] = (left - 1, reached)
        if left == 0:
            self.cuts.pop(0)
            raise PowerCut


class Round:
    """A session in which everybody but this site answers at once; `few` leave the last one out where that can be."""

    def __init__(self, header: SessionHeader) -> None:
        self.header, self.session, self.inputs = header, header.sid0(), inputs_of(header)
        self.asked = count()
        self.u1: list[Advertisement] = []
        self.server = SecureAggregator(header, roster_of(header))
        self.peers: dict[str, Any] = {
            site: advertise(header, identity(site, header), entropy((site, self.session))) for site in header.sites[1:]
        }

    def x(self) -> Vector:
        next(self.asked)
        return self.inputs[ME]

    def ask(self, site: Participation, step: str, *, few: bool = False) -> Any:
        """What the site answers to a step."""
        cut = -1 if few else None
        match step:
            case "join":
                return site.join(self.header)
            case "share_keys":
                return site.share_keys(self.session, self.u1[:cut])
            case "submit":
                u2 = self.u2[:cut]
                relayed = {peer: sealed for peer, sealed in self.envelopes.items() if peer in u2}
                return site.submit(self.session, u2, relayed, self.x)
            case "confirm":
                return site.confirm(self.session, self.u3[:cut])
            case _:
                kept = list(self.signatures)[:cut]
                return site.unmask(self.session, {peer: self.signatures[peer] for peer in kept})

    def take(self, step: str, answer: Any) -> None:
        """Hand the answer to the server, and the step to everybody else."""
        hands: dict[str, Callable[[Any], None]] = {
            "join": self._advertised, "share_keys": self._shared, "submit": self._masked, "confirm": self._signed,
            "unmask": self._unmasked,
        }  # fmt: skip
        hands[step](answer)

    def _advertised(self, mine: Advertisement) -> None:
        for message in (mine, *(peer.message for peer in self.peers.values())):
            self.server.advertise(message)
        self.u1 = list(self.server.close_advertise())

    def _shared(self, mine: Envelopes) -> None:
        self.peers = {site: peer.share_keys(self.u1, entropy(site)) for site, peer in self.peers.items()}
        for message in (mine, *(peer.message for peer in self.peers.values())):
            self.server.share(message)
        self.u2 = list(self.server.close_share())
        self.envelopes = self.server.envelopes_for(ME)

    def _masked(self, mine: tuple[MaskedInput, Vector]) -> None:
        self.server.mask(*mine)
        for site, peer in self.peers.items():
            self.peers[site], y = peer.mask(self.server.envelopes_for(site), self.u2, self.inputs[site])
            self.server.mask(self.peers[site].message, y)
        self.u3 = list(self.server.close_mask())

    def _signed(self, mine: Consistency) -> None:
        self.peers = {site: peer.confirm(self.u3) for site, peer in self.peers.items()}
        for message in (mine, *(peer.message for peer in self.peers.values())):
            self.server.consistency(message)
        self.signatures = dict(self.server.close_consistency())

    def _unmasked(self, mine: Shares) -> None:
        for message in (mine, *(peer.unmask(self.signatures).message for peer in self.peers.values())):
            self.server.shares(message)
        self.total = self.server.close_unmask()


def bytes_of(answer: Any) -> bytes:
    if isinstance(answer, tuple):
        message, y = answer
        return bytes(message.to_bytes()) + bytes(y.tobytes())
    written: bytes = answer.to_bytes()
    return written


def reach(step: str, site: Machine, played: Round) -> Any:
    """Play until this step is answered (not yet handed on); its answer."""
    for each in STEPS:
        answer = played.ask(site.at_work, each)
        if each == step:
            return answer
        played.take(each, answer)
    raise AssertionError(step)


def before(step: str, site: Machine, played: Round) -> None:
    """Play until this step can be asked."""
    for each in STEPS[: STEPS.index(step)]:
        played.take(each, played.ask(site.at_work, each))


def whole(site: Machine, header: SessionHeader) -> Round:
    """A whole round."""
    played = Round(header)
    played.take("unmask", reach("unmask", site, played))
    return played


def audited(site: Machine, folder: Path, rounds: int = 9) -> list[str]:
    """What an audit finds wrong with the site's log, in a study of so many rounds."""
    log = MemoryEvidence()
    log.append("roster", roster_entry(site.identity.roster, rounds))
    for kind, body in site.log:
        log.append(kind, body)
    folder.mkdir()
    return contradictions(folder, STUDY, {ME: log})


def secrets_of(state: Any) -> Iterator[bytes]:
    """Every secret in a state."""
    if isinstance(state, Advertised | Shared):
        yield from (state.keys.envelope, state.keys.mask, state.keys.seed)
    if isinstance(state, Shared):
        yield from (state.own.seed_share.to_bytes()[1:], state.own.key_share.to_bytes()[1:])
    if isinstance(state, Masked | Signed):
        for held in state.held.values():
            yield from (held.seed_share.to_bytes()[1:], held.key_share.to_bytes()[1:])


def advance(site: Machine, played: Round, step: str) -> set[bytes]:
    """Play until this step is answered; every secret that the site has had on its disk."""
    secrets: set[bytes] = set()
    for each in STEPS[: STEPS.index(step) + 1]:
        answer = played.ask(site.at_work, each)
        secrets |= set(secrets_of(site.state))
        if each != step:
            played.take(each, answer)
    assert len(secrets) >= 3
    return secrets
