"""A coordinator driven by hand: sites that answer only when told to, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedseg.federation.evaluation import Measured, statistics_of
from fedseg.federation.exchange import Confirm, Enrolled, Instruction, Join, RingVector, ShareKeys, Submit, Unmask
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import MemoryArchive
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.course import StudyState
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.session import encoding_of, evaluation_code
from fedseg.secagg.encoding import rounding_seed
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.site import Advertised, Masked, Shared, Signed, advertise, contribute
from tests.runtime import toy
from tests.runtime.toy import INITIAL, SIZE
from tests.secagg.helpers import entropy, key, ring_sum

ADVERTISE, SHARE, MASK = "AdvertiseKeys", "ShareKeys", "MaskedInputCollection"
CONFIRM, UNMASK = "ConsistencyCheck", "Unmasking"
CLOSED, ABANDONED = "closed", "abandoned"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Player:
    """A site that does what it is asked, once a turn; its update is one number everywhere."""

    def __init__(self, bench: Bench, site: str, target: float) -> None:
        self.bench, self.site, self.target = bench, site, target
        self.identity = toy.identity(site, bench.manifest)
        self.score: float | None = None
        self.subjects: Sequence[Measured] = ()
        self.bend: Callable[[RingVector], RingVector] = lambda vector: vector
        self.draw = entropy(site)
        self.restart()

    def restart(self) -> None:
        """Forget all keys."""
        self.header: SessionHeader | None = None
        self.keys: Advertised | Shared | Masked | Signed | None = None

    def contribution(self, round_number: int) -> RingVector:
        manifest = self.bench.manifest
        seed = rounding_seed(manifest.plan.seed, round_number, self.site)
        weight, update = manifest.plan.sites[self.site].weight, np.full(SIZE, self.target, np.float32)
        return self.bend(toy.code(manifest).encode(update, weight, seed, self.score).vector)

    def vector(self, header: SessionHeader) -> RingVector:
        """What it gives to a session."""
        if header.evaluation:
            return self.bend(statistics_of(evaluation_code(self.bench.manifest), self.subjects))
        return self.contribution(header.round)

    def ask(self) -> Instruction:
        return self.bench.coordinator.poll(self.site, self.header.sid0() if self.header else None, 0)

    def turn(self) -> Instruction:
        instruction = self.ask()
        self.answer(instruction)
        return instruction

    def answer(self, instruction: Instruction) -> None:
        coordinator, site, keys = self.bench.coordinator, self.site, self.keys
        match instruction, keys:
            case Join(), _:
                self.header, self.keys = instruction.header, None
                if self.header.thresholds.secure:
                    self.keys = advertise(self.header, self.identity, self.draw)
                coordinator.advertise(site, self.header.sid0(), self.keys.message if self.keys else None)
            case ShareKeys(), Advertised():
                self.keys = keys.share_keys(instruction.advertisements, self.draw)
                coordinator.share_keys(site, instruction.session, self.keys.message)
            case Submit(), Shared():
                vector = self.vector(keys.header)
                self.keys, y = keys.mask(instruction.envelopes, instruction.sharers, vector)
                coordinator.upload(site, instruction.session, self.keys.message, y)
            case Submit(), None:
                assert self.header is not None
                vector = self.vector(self.header)
                message = contribute(self.header, self.identity, instruction.sharers, vector)
                coordinator.upload(site, instruction.session, message, vector)
            case Confirm(), Masked():
                self.keys = keys.confirm(instruction.contributors)
                coordinator.confirm(site, instruction.session, self.keys.message)
            case Unmask(), Signed():
                shares = keys.unmask(instruction.signatures).message
                self.keys = None
                coordinator.unmask(site, instruction.session, shares)


class Bench:
    """A study of players."""

    def __init__(self, manifest: Manifest, archive: MemoryArchive | None = None) -> None:
        self.manifest, self.clock = manifest, Clock()
        self.archive = archive or MemoryArchive()
        self.archive.save_model(0, INITIAL, None)
        self.evidence = MemoryEvidence()
        self.enrolled = toy.enrolled(manifest)
        self.events: list[events.Event] = []
        self.players = {site: Player(self, site, 0.1 * (i + 1)) for i, site in enumerate(manifest.plan.site_names)}
        self.start()

    def start(self, *, evaluate: bool = False) -> None:
        """Start the server, anew where it ran before; what it told then is forgotten."""
        self.events.clear()
        self.coordinator = Coordinator(
            self.manifest, self.archive, enrolled=self.who, key=key("server"), evidence=self.evidence,
            notify=self.events.append, clock=self.clock, now=self.clock, evaluate=evaluate,
        )  # fmt: skip

    def who(self) -> Enrolled:
        """Who has enrolled so far."""
        return self.enrolled

    def stands_at(self, *states: StudyState) -> bool:
        return self.coordinator.state in states

    @property
    def logged(self) -> list[str]:
        """Kinds of all that the server has written into its log."""
        return [kind for kind, _ in self.evidence.entries()]

    @property
    def phase(self) -> str:
        """Where the newest attempt stands, as the server told."""
        for event in reversed(self.events):
            match event:
                case events.RoundStarted() | events.EvaluationStarted():
                    return ADVERTISE
                case events.PhaseStarted():
                    return event.phase
                case events.RoundClosed() | events.Evaluated():
                    return CLOSED
                case events.RoundAbandoned():
                    return ABANDONED
        return ""

    @property
    def lost(self) -> dict[str, str]:
        """Every loss the server told of, the newest of each site."""
        return {event.site: event.why for event in self.events if isinstance(event, events.SiteLost)}

    def gather(self) -> None:
        """All sites come, until the first attempt opens; none has answered yet."""
        for player in self.players.values():
            player.ask()

    def until(self, phase: str, *sites: str) -> None:
        """These sites (or all) take turns until a phase begins."""
        for _ in range(20):
            for site in sites or self.players:
                if self.phase == phase:
                    return
                self.players[site].turn()
        if self.phase != phase:
            raise AssertionError(f"{phase} did not begin: {self.phase}")

    def one_round(self, *sites: str) -> None:
        """These sites (or all) take turns until one more round is closed."""
        before = len(self.coordinator.history)
        for _ in range(20):
            for site in sites or self.players:
                if len(self.coordinator.history) > before:
                    return
                self.players[site].turn()
        raise AssertionError(f"the round was not closed: {self.phase}")

    def wait(self, seconds: float, *alive: str) -> None:
        """Time passes, in which these sites give signs of life."""
        self.clock.seconds += seconds
        for site in alive:
            self.coordinator.alive(site)

    def others(self, *lost: str) -> tuple[str, ...]:
        return tuple(site for site in self.players if site not in lost)

    def expected(self, weights: Weights, round_number: int, *sites: str) -> Weights:
        """The model that a round of these sites makes, by Python's integers."""
        total = ring_sum([self.players[site].contribution(round_number) for site in sites])
        shares = [self.manifest.plan.sites[site].weight for site in sites]
        return toy.moved(self.manifest, weights, encoding_of(self.manifest).decode(total, shares).update)
