"""A server that says to one site what a test wrote down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedseg.errors import FedsegError, LinkError
from fedseg.federation.exchange import (
    CLOSE,
    COUNTERSIGN,
    SERVER,
    Countersigned,
    Enrolled,
    Head,
    Instruction,
    Join,
    LedgerClaim,
    Progress,
    Published,
    RingVector,
    Submit,
    Wait,
    WithdrawReason,
)
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.evidence import MemoryEvidence
from fedseg.runtime.ports import Charger, Scorer
from fedseg.runtime.session import header_of
from fedseg.runtime.simulation import SiteMemory
from fedseg.runtime.site import SiteRunner
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import sign
from tests.runtime import toy
from tests.secagg.helpers import entropy, key, ring_sum

FIRST = model_hash(toy.INITIAL)
START = Head(FIRST, 0, FIRST)
PLAIN = toy.manifest(toy.plan(mode="plain", rounds=2))
SECURE = toy.manifest(toy.plan(rounds=2))


class Script:
    """A link whose server says what a test wrote down, and remembers what it was sent."""

    def __init__(self, *instructions: Instruction | FedsegError) -> None:
        self.instructions = list(instructions)
        self.sent: list[tuple[str, Any]] = []
        self.models = {FIRST: toy.INITIAL}
        self.sums: dict[int, Published] = {}
        self.refusals: dict[str, list[FedsegError]] = {}
        self.who = toy.enrolled(PLAIN)
        self.study = PLAIN
        self.newest: Countersigned | None = None

    def _note(self, what: str, detail: Any) -> None:
        self.sent.append((what, detail))
        if self.refusals.get(what):
            raise self.refusals[what].pop(0)

    def kinds(self) -> list[str]:
        """What was asked or sent, but for the polls."""
        return [what for what, _ in self.sent if what != "poll"]

    def of(self, kind: str) -> list[Any]:
        return [detail for what, detail in self.sent if what == kind]

    def manifest(self, plan_hash: str | None = None) -> bytes:
        return b""

    def roster(self) -> Enrolled:
        self._note("roster", None)
        return self.who

    def poll(self, session: bytes | None) -> Instruction:
        self._note("poll", session)
        if not self.instructions:
            raise LinkError("the script is over")
        following = self.instructions.pop(0)
        if isinstance(following, FedsegError):
            raise following
        return following

    def advertise(self, session: bytes, advertisement: Advertisement | None) -> None:
        self._note("advertise", advertisement)

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        self._note("share_keys", envelopes)

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        self._note("upload", vector.copy())

    def confirm(self, session: bytes, message: Consistency) -> None:
        self._note("confirm", message)

    def unmask(self, session: bytes, shares: Shares) -> None:
        self._note("unmask", shares)

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        self._note("withdraw", (session, reason))

    def claim(self, claim: LedgerClaim) -> Countersigned:
        self._note("claim", claim)
        self.newest = countersigned(claim, self.study)
        return self.newest

    def countersigned(self) -> Countersigned | None:
        self._note("countersigned", None)
        return self.newest

    def model(self, wanted: str, progress: Progress) -> Weights:
        self._note("model", wanted)
        return self.models[wanted]

    def published(self, round_number: int, progress: Progress) -> Published:
        self._note("published", round_number)
        return self.sums[round_number]

    def evaluated(self, round_number: int, progress: Progress) -> Published:
        self._note("evaluated", round_number)
        return self.sums[round_number]

    def holds(self, model: str) -> None:
        self._note("holds", model)


class Patient(Script):
    """Asks for an update only when it is there."""

    memory: SiteMemory
    joined: SessionHeader | None = None

    def poll(self, session: bytes | None) -> Instruction:
        following, joined = self.instructions[0] if self.instructions else None, self.joined
        if isinstance(following, Join):
            self.joined = following.header
        if isinstance(following, Submit) and joined is not None:
            wait_for(lambda: self.memory.contribution(joined.round, joined.model_hash.hex()) is not None)
        return super().poll(session)


def wait_for(holds: Callable[[], bool]) -> Instruction:
    """An instruction to wait, given once something in the background is done."""
    end = threading.Event()
    for _ in range(2000):
        if holds():
            return Wait("done")
        end.wait(0.005)
    raise AssertionError("it took too long")


def patient(*instructions: Instruction | FedsegError) -> tuple[Patient, SiteMemory]:
    link = Patient(*instructions)
    link.memory = SiteMemory()
    return link, link.memory


def runner(
    link: Script,
    manifest: Manifest = PLAIN,
    *,
    trainer: toy.PullTrainer | None = None,
    memory: SiteMemory | None = None,
    evidence: MemoryEvidence | None = None,
    confirm: Callable[[Enrolled], Roster] | None = None,
    may_reuse: bool = False,
    charger: Charger | None = None,
    scorer: Scorer | None = None,
    stop: threading.Event | None = None,
    notify: events.Notify = lambda _: None,
) -> SiteRunner:
    """Site a."""
    link.study = manifest
    return SiteRunner(
        toy.identity("a", manifest), manifest, link, trainer or toy.PullTrainer(1.0), toy.LAYOUT,
        memory or SiteMemory(), evidence=evidence or MemoryEvidence(),
        confirm=confirm or (lambda _: toy.roster(manifest)), may_reuse=may_reuse, charger=charger, scorer=scorer,
        entropy=entropy("a"), notify=notify, stop=stop or threading.Event(), patience_s=0,
    )  # fmt: skip


def header(manifest: Manifest = PLAIN, number: int = 1, attempt: int = 1, model: str = FIRST) -> SessionHeader:
    return header_of(manifest, toy.roster(manifest), number, attempt, model)


def refused(link: Script, manifest: Manifest = PLAIN, **more: Any) -> FedsegError:
    """How a site's part ended, which it must with an error."""
    with pytest.raises(FedsegError) as caught:
        runner(link, manifest, **more).run()
    return caught.value


def left(link: Script, manifest: Manifest = PLAIN, **more: Any) -> str:
    """Why a site left the attempt; then the script is over."""
    notes: list[events.Event] = []
    assert refused(link, manifest, notify=notes.append, **more).what == "the script is over"
    (why,) = [event.text for event in notes if isinstance(event, events.Note)]
    assert why.startswith("this site leaves the attempt: ")
    return why.removeprefix("this site leaves the attempt: ")


def signed(published: Published) -> Published:
    """With the signature of the study's server."""
    signature = sign(key("server"), CLOSE, published.session, SERVER, published.statement)
    return replace(published, signature=signature)


def countersigned(claim: LedgerClaim, manifest: Manifest, site: str = "a") -> Countersigned:
    """A claim with the signature of the study's server."""
    unsigned = Countersigned.of(claim, manifest.plan_hash)
    statement, plan = unsigned.statement(manifest.study, site), bytes.fromhex(manifest.plan_hash)
    return replace(unsigned, signature=sign(key("server"), COUNTERSIGN, plan, SERVER, statement))


def one_round(
    updates: Iterable[float],
    manifest: Manifest = PLAIN,
    *,
    base: Weights = toy.INITIAL,
    number: int = 1,
    scores: Sequence[float | None] = (),
    sites: tuple[str, ...] = ("a", "b", "c"),
) -> tuple[Published, Weights]:
    """The published sum of a round over updates of these numbers, and the model that it makes of `base`."""
    encoding, values = toy.code(manifest), list(updates)
    vectors = [
        encoding.encode(np.full(toy.SIZE, value, np.float32), 1, bytes(32), score).vector
        for value, score in zip(values, scores or [None] * len(values), strict=True)
    ]
    there, total = sites[: len(vectors)], ring_sum(vectors)
    following = toy.moved(manifest, base, encoding.decode(total, [1] * len(there)).update, number)
    session = header(manifest, number, model=model_hash(base)).sid0()
    return signed(Published(number, there, total, session, model_hash(following))), following
